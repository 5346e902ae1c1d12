"""Collect the finished work units of a run into the parts and the manifest of each split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from armd_scale.data.indexed_format import dtype_for
from armd_scale.data.manifest import (
    Manifest,
    ReadRecord,
    Skipped,
    SplitRecord,
    TokenizerRecord,
)
from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.input_hash import source_records, sum_hashes
from armd_scale.data.preprocess.options import PreprocessOptions, WorkPlan
from armd_scale.data.preprocess.publish import SplitParts
from armd_scale.data.preprocess.unit_report import UnitReport, load_report
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import CorpusError


def collect_splits(
    job: EncodeJob, plan: WorkPlan, tokenizer: Tokenizer, options: PreprocessOptions
) -> dict[str, SplitParts]:
    """Return the parts and the manifest of each split, from the reports of all units of the run.

    Raises:
        CorpusError: the corpus contains no document.
    """
    reports: dict[int, UnitReport] = {}
    skipped, read = Skipped(), ReadRecord()
    for unit_index, unit in plan.indexed_units:
        report = load_report(job, unit_index, unit)
        assert report is not None, unit
        # In the order of the units, which is the order of the documents in the result.
        reports[unit_index] = report
        skipped = skipped.plus(
            Skipped(
                report.num_skipped,
                tuple(report.skipped_examples),
                tuple(report.unreadable_files),
                report.skipped_reasons,
                report.reason_examples,
            )
        )
        read = read.plus(
            ReadRecord(
                sum(split.documents for split in report.splits.values()),
                sum(split.text_bytes for split in report.splits.values()),
                report.special_tokens,
                report.round_trip,
            )
        )
    splits: dict[str, SplitParts] = {}
    for name in options.split_names:
        parts = [
            job.part(
                unit_index, name, num_sequences=counts.sequences, num_documents=counts.documents
            )
            for unit_index, report in reports.items()
            for counts in (report.splits[name],)
        ]
        manifest = _make_manifest(
            name, list(reports.values()), plan=plan, tokenizer=tokenizer, options=options
        )
        manifest = replace(manifest, skipped=skipped, read=read)
        splits[name] = SplitParts(parts, manifest)
    _check_not_empty([split.manifest for split in splits.values()], options)
    return splits


def _make_manifest(
    split_name: str,
    reports: Sequence[UnitReport],
    *,
    plan: WorkPlan,
    tokenizer: Tokenizer,
    options: PreprocessOptions,
) -> Manifest:
    """Return the manifest of one split, without what was skipped and read in all splits.

    Its checksums are added when the files are written.
    """
    counts = [report.splits[split_name] for report in reports]
    return Manifest(
        documents=sum(count.documents for count in counts),
        tokens=sum(count.tokens for count in counts),
        text_bytes=sum(count.text_bytes for count in counts),
        chunked_documents=sum(count.chunked_documents for count in counts),
        vocab_size=tokenizer.vocab_size,
        prefix_ids=tokenizer.prefix_ids,
        eod=tokenizer.eod if options.append_eod else None,
        dtype=dtype_for(tokenizer.vocab_size).name,
        tokenizer=TokenizerRecord(
            # By name only: the files may be moved together to another folder.
            tokenizer.kind,
            tokenizer.fingerprint,
            f"{Path(options.prefix).name}.tokenizer",
        ),
        sha256={},
        # Those of the whole corpus, also in a shard, because merging takes the list from a shard.
        sources=source_records(
            plan.sources,
            sum_hashes(
                [unit for _, unit in plan.indexed_units],
                [report.content_hashes for report in reports],
            ),
        ),
        skipped=Skipped(),
        ignored=plan.ignored,
        split=SplitRecord(split_name, options.split) if split_name else None,
        shard=options.shard,
        plan=plan.digest,
        special_tokens=options.special_tokens,
    )


def _check_not_empty(manifests: Sequence[Manifest], options: PreprocessOptions) -> None:
    # A single shard may be empty: there may be more shards than work units.
    if options.shard is None and not any(manifest.documents for manifest in manifests):
        skipped = manifests[0].skipped
        reason = (
            f"; {skipped.count} were skipped, the first: {skipped.examples[0]}"
            if skipped.count
            else ""
        )
        raise CorpusError(
            f"the input {' '.join(options.inputs)} must contain at least one document, but "
            f"contains none{reason}: check the files and --text-key"
        )
