"""Preprocess a corpus into token shards: plan, tokenizer, work units, join.

Each stage leaves its result in the workspace, so a run that was stopped anywhere continues there.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from armd_scale.data.indexed_format import dtype_for
from armd_scale.data.manifest import Manifest
from armd_scale.data.preprocess.collect import collect_splits
from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.existing_result import existing_result
from armd_scale.data.preprocess.options import PreprocessOptions, WorkPlan, make_plan
from armd_scale.data.preprocess.prepare_tokenizer import has_trained_tokenizer, prepare_tokenizer
from armd_scale.data.preprocess.publish import publish, was_publishing
from armd_scale.data.preprocess.result_files import check_inputs_apart, check_tokenizer
from armd_scale.data.preprocess.splits import split_bounds
from armd_scale.data.preprocess.unit_report import has_reports, load_report
from armd_scale.data.preprocess.workers import encode_units
from armd_scale.data.preprocess.workspace import discard_published, workspace
from armd_scale.data.tokenizer import Tokenizer, load_tokenizer
from armd_scale.data.tokenizer_training import parse_train_spec
from armd_scale.errors import TokenizerError
from armd_scale.log import ProgressBar, get_logger

# Skipped documents shown in the log; the manifest keeps more of them.
_NUM_LOGGED_EXAMPLES = 3

_logger = get_logger(__name__)


def preprocess(options: PreprocessOptions) -> list[Manifest]:
    """Encode a corpus into PREFIX.bin, .idx and .json (for each split) and PREFIX.tokenizer/.

    A run that was stopped continues when it is called again. If its result exists already, nothing
    is done.

    Returns:
        The manifests, one per split.

    Raises:
        CorpusError: an option is invalid, or the input cannot be read or contains no document.
        TokenizerError: the tokenizer cannot be read or trained.
        ShardError: the result cannot be written, or would replace a different one.
    """
    vocab_size = parse_train_spec(options.tokenizer)
    if vocab_size is not None and options.shard is not None:
        raise TokenizerError(
            "all shards of a corpus must use one tokenizer: train it first, in a run without "
            "--shard on a part of the text, and pass its PREFIX.tokenizer folder as --tokenizer"
        )
    tokenizer = load_tokenizer(options.tokenizer) if vocab_size is None else None
    # A tokenizer that is still to be trained is identified by how it is trained: the same corpus
    # and vocabulary size give the same tokenizer.
    plan = make_plan(options, tokenizer=tokenizer.fingerprint if tokenizer else options.tokenizer)
    if manifests := existing_result(plan, options, tokenizer):
        discard_published(options.prefix, plan.workspace_key)
        _logger.info("%s is already complete", options.prefix)
        return manifests
    check_inputs_apart(
        options.prefix,
        options.split_names,
        inputs=(source.path for source in plan.sources if source.kind != "hub"),
        tokenizer=options.tokenizer if tokenizer else None,
    )
    with workspace(
        options.prefix,
        options.split_names,
        key=plan.workspace_key,
        overwrite=options.overwrite,
        has_progress=lambda folder: has_reports(folder) or has_trained_tokenizer(folder, plan),
    ) as folder:
        tokenizer = prepare_tokenizer(
            folder, tokenizer, vocab_size=vocab_size, plan=plan, options=options
        )
        check_tokenizer(
            options.prefix,
            options.split_names,
            new=folder / "tokenizer",
            was_publishing=was_publishing(folder),
        )
        job = _make_job(folder, tokenizer, options)
        _encode(job, plan, options.workers)
        splits = collect_splits(job, plan, tokenizer, options)
        manifests = publish(options.prefix, splits, folder=folder)
    _log_result(manifests, options)
    return manifests


def _make_job(folder: Path, tokenizer: Tokenizer, options: PreprocessOptions) -> EncodeJob:
    return EncodeJob(
        folder=folder,
        tokenizer=folder / "tokenizer",
        fingerprint=tokenizer.fingerprint,
        # An empty document consists of its end token. Without end tokens it would have length 0.
        reader=replace(options.reader, keep_empty=options.append_eod),
        end_token=tokenizer.eod if options.append_eod else None,
        dtype=dtype_for(tokenizer.vocab_size).name,
        split_names=options.split_names,
        split_bounds=split_bounds(options.split),
        on_error=options.on_error,
    )


def _encode(job: EncodeJob, plan: WorkPlan, num_workers: int) -> None:
    """Encode the units of this run that are not finished yet."""
    units = plan.indexed_units
    unfinished = [(index, unit) for index, unit in units if load_report(job, index, unit) is None]
    if len(unfinished) < len(units):
        _logger.info("continuing: %d of %d units are left", len(unfinished), len(units))
    megabytes = sum(unit.num_bytes for _, unit in unfinished) / 1e6
    with ProgressBar("encoding", megabytes, unit="MB") as progress:
        encode_units(
            job,
            unfinished,
            num_workers=num_workers,
            on_unit_done=lambda unit: progress.advance(unit.num_bytes / 1e6),
        )


def _log_result(manifests: Sequence[Manifest], options: PreprocessOptions) -> None:
    for manifest, prefix in zip(manifests, options.split_prefixes.values(), strict=True):
        _logger.info("%s: %d documents, %d tokens", prefix, manifest.documents, manifest.tokens)
        if manifest.cut_documents:
            _logger.info(
                "%s: split %d documents that were too long", prefix, manifest.cut_documents
            )
        if manifest.documents == 0:
            _logger.warning("%s contains no documents and cannot be read", prefix)
    # Skipped documents and ignored files are counted for the whole run, equal in all manifests.
    skipped, ignored = manifests[0].skipped, manifests[0].ignored
    for example in skipped.examples[:_NUM_LOGGED_EXAMPLES]:
        _logger.warning("skipped %s", example)
    for file in skipped.files:
        _logger.warning("could not read all of a file: %s", file)
    if skipped.count:
        _logger.warning("skipped %d documents; the manifest lists the first", skipped.count)
    if ignored:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in ignored.items())
        _logger.info("ignored files of unknown types: %s", counts)
