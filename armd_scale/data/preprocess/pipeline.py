"""Preprocess a corpus into token shards: plan, tokenizer, work units, join.

Each stage leaves its result in the workspace, so a run that was stopped anywhere continues there.
"""

from dataclasses import replace
from pathlib import Path

from armd_scale.data.indexed_format import dtype_for
from armd_scale.data.manifest import Manifest
from armd_scale.data.preprocess.collect import collect_splits
from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.existing_result import existing_result
from armd_scale.data.preprocess.options import (
    PreprocessOptions,
    WorkPlan,
    identify_tokenizer,
    make_plan,
)
from armd_scale.data.preprocess.prepare_tokenizer import has_trained_tokenizer, prepare_tokenizer
from armd_scale.data.preprocess.publish import publish, was_publishing
from armd_scale.data.preprocess.result_files import check_inputs_apart, check_tokenizer
from armd_scale.data.preprocess.splits import split_bounds
from armd_scale.data.preprocess.summary import check_skipped, log_summary
from armd_scale.data.preprocess.tokenizer_advice import load_named_tokenizer
from armd_scale.data.preprocess.unit_report import has_reports, load_report
from armd_scale.data.preprocess.workers import encode_units
from armd_scale.data.preprocess.workspace import discard_published, workspace
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.data.tokenizer_training import parse_train_spec
from armd_scale.errors import TokenizerError
from armd_scale.log import ProgressBar, get_logger

_logger = get_logger(__name__)


def preprocess(options: PreprocessOptions) -> list[Manifest]:
    """Encode a corpus into PREFIX.bin, .idx and .json (for each split) and PREFIX.tokenizer/.

    A run that was stopped continues when it is called again. If its result exists already, nothing
    is done.

    Returns:
        The manifests, one per split.

    Raises:
        CorpusError: an option is invalid, or the input cannot be read, contains no document or too
            many that had to be skipped.
        TokenizerError: the tokenizer cannot be read or trained.
        ShardError: the result cannot be written, or would replace a different one.
    """
    vocab_size = parse_train_spec(options.tokenizer)
    if vocab_size is not None and options.shard is not None:
        raise TokenizerError(
            "all shards of a corpus must use one tokenizer: train it first, in a run without "
            "--shard on a part of the text, and pass its PREFIX.tokenizer folder as --tokenizer"
        )
    tokenizer = (
        load_named_tokenizer(options.tokenizer, add_bos=options.prepend_bos)
        if vocab_size is None
        else None
    )
    # A tokenizer that is still to be trained is identified by how it is trained: the same corpus
    # and vocabulary size give the same tokenizer.
    plan = make_plan(
        options,
        tokenizer=identify_tokenizer(tokenizer) if tokenizer else options.tokenizer,
    )
    if manifests := existing_result(plan, options, tokenizer):
        discard_published(options.prefix, plan.workspace_key)
        check_skipped(manifests[0], options.max_skipped)
        _logger.info("%s is already complete", options.prefix)
        log_summary(manifests, list(options.split_prefixes.values()))
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
        check_skipped(next(iter(splits.values())).manifest, options.max_skipped)
        manifests = publish(options.prefix, splits, folder=folder)
    log_summary(manifests, list(options.split_prefixes.values()))
    return manifests


def _make_job(folder: Path, tokenizer: Tokenizer, options: PreprocessOptions) -> EncodeJob:
    return EncodeJob(
        folder=folder,
        tokenizer=folder / "tokenizer",
        fingerprint=tokenizer.fingerprint,
        # An empty document consists of its end token. Without end tokens it would have length 0.
        reader=replace(options.reader, keep_empty=options.append_eod),
        start_tokens=tokenizer.prefix_ids,
        end_token=tokenizer.eod if options.append_eod else None,
        dtype=dtype_for(tokenizer.vocab_size).name,
        split_names=options.split_names,
        split_bounds=split_bounds(options.split),
        special_tokens=options.special_tokens,
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
