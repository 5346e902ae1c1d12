"""Recognize a result that is complete already, by the contents of inputs and outputs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from armd_scale.data.manifest import Manifest, load_manifest
from armd_scale.data.preprocess.input_hash import hash_units, source_records
from armd_scale.data.preprocess.options import PreprocessOptions, WorkPlan
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import ShardError
from armd_scale.files import regular_file_status, sha256_file


def existing_result(
    plan: WorkPlan, options: PreprocessOptions, tokenizer: Tokenizer | None
) -> list[Manifest]:
    """Return the manifests of an earlier, complete run of this command; an empty list if none.

    The arguments and the names and sizes of the inputs are compared first. If they are equal, the
    inputs and the shards are read and compared with the hashes in the manifests. Modification times
    do not count: copying or touching a corpus does not change it, and an edit may keep them.

    Args:
        plan: the units of this run.
        options: the options of the run.
        tokenizer: the tokenizer that the user gave; None if one is to be trained.
    """
    manifests: list[Manifest] = []
    for prefix in options.split_prefixes.values():
        with suppress(ShardError):  # a damaged manifest counts as none
            manifest = load_manifest(prefix)
            if (
                manifest is not None
                and (manifest.plan, manifest.shard) == (plan.digest, options.shard)
                and not _has_skipped_too_much(manifest, options)
                and (tokenizer is None or not options.append_eod or manifest.eod == tokenizer.eod)
                and _has_tokenizer(manifest, prefix)
                and _has_files(manifest, prefix)
            ):
                manifests.append(manifest)
    if len(manifests) == len(options.split_prefixes) and _has_inputs(manifests, plan, options):
        return manifests
    return []


def _has_skipped_too_much(manifest: Manifest, options: PreprocessOptions) -> bool:
    """Return whether `on_error` would end a run where that of the manifest went on."""
    if options.on_error == "fail":
        return bool(manifest.skipped.count)
    return bool(manifest.skipped.files) and options.on_error != "skip"


def _has_tokenizer(manifest: Manifest, prefix: str) -> bool:
    return manifest.tokenizer_folder(prefix).is_dir()


def _has_files(manifest: Manifest, prefix: str) -> bool:
    """Return whether the .bin and .idx files have the contents that the manifest says."""
    try:
        paths = {kind: Path(f"{prefix}.{kind}") for kind in ("idx", "bin")}
        for path in paths.values():
            regular_file_status(path)
        return all(sha256_file(path) == manifest.sha256[kind] for kind, path in paths.items())
    except (OSError, KeyError):
        return False


def _has_inputs(manifests: Sequence[Manifest], plan: WorkPlan, options: PreprocessOptions) -> bool:
    """Return whether the inputs have the contents that the manifests say."""
    units = [unit for _, unit in plan.indexed_units]
    return manifests[0].sources == source_records(
        plan.sources, hash_units(units, num_threads=options.workers)
    )
