"""Encode one work unit: read its documents, tokenize them, write its part files and its report."""

from collections import Counter
from collections.abc import Iterator

from armd_scale.data.preprocess.disk_errors import translate_os_errors
from armd_scale.data.preprocess.documents import Document, SkippedDocument
from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.input_hash import check_unchanged, hash_unit
from armd_scale.data.preprocess.part_writer import PartWriter
from armd_scale.data.preprocess.readers import read_unit
from armd_scale.data.preprocess.round_trip import (
    is_sampled,
    make_special_token_counter,
    try_round_trip,
)
from armd_scale.data.preprocess.splits import assign_split
from armd_scale.data.preprocess.unit_report import (
    SplitCounts,
    UnitReport,
    unit_digest,
    write_report,
)
from armd_scale.data.preprocess.work_units import WorkUnit
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import CorpusError

# Large enough that the cost of a call into the tokenizer library disappears, small enough that its
# results, Python objects much larger than the text, take little memory.
_BATCH_BYTES = 1 << 19


def encode_unit(
    job: EncodeJob, tokenizer: Tokenizer, *, unit_index: int, unit: WorkUnit
) -> Iterator[int]:
    """Encode a unit into its part files, batch by batch; the report is written last.

    Args:
        job: settings that all units share.
        tokenizer: the tokenizer of the job, loaded.
        unit_index: index of the unit in the whole corpus.
        unit: what to read.

    Yields:
        Number of documents of each batch. The caller may stop between two of them; the unit then
        has no report and is encoded again by the next run.

    Raises:
        CorpusError: an input is not a document, and the job says that this ends the run; or a file
            changed while it was read.
        ShardError: the part files cannot be written.
    """
    report = UnitReport(
        {name: SplitCounts() for name in job.split_names}, unit=unit_digest(job, unit)
    )
    check_unchanged(unit)
    count_special_tokens = make_special_token_counter(tokenizer)
    special_tokens: Counter[str] = Counter()
    num_documents = 0
    with translate_os_errors(job.folder):
        with PartWriter(job, unit_index) as writer:
            for batch in _batches(unit, report, job):
                encoded = tokenizer.encode_batch([document.text for document in batch])
                for document, ids in zip(batch, encoded, strict=True):
                    split = assign_split(document.first_chunk, job.split_bounds)
                    split_name = job.split_names[split]
                    num_tokens = writer.write(split_name, document, ids)
                    report.splits[split_name].add(document, num_tokens)
                    special_tokens += count_special_tokens(document.text)
                    if document.is_start and is_sampled(num_documents):
                        sample = try_round_trip(tokenizer, document, ids, job.special_tokens)
                        report.round_trip = report.round_trip.plus(sample)
                    num_documents += document.is_start
                yield len(batch)
        for split_name, counts in report.splits.items():
            counts.sequences = writer.num_sequences(split_name)
        report.special_tokens = dict(special_tokens)
        report.content_hashes = hash_unit(unit)
        check_unchanged(unit)
        # After the files are closed: only then has everything been written, and a full disk shows.
        write_report(job, unit_index, report)


def _batches(unit: WorkUnit, report: UnitReport, job: EncodeJob) -> Iterator[list[Document]]:
    """Group the documents of a unit into batches of bounded size; skipped ones go to the report.

    Raises:
        CorpusError: a document was skipped, and the job says that this ends the run.
    """
    batch: list[Document] = []
    num_bytes = 0
    for item in read_unit(unit, job.reader):
        if isinstance(item, SkippedDocument):
            if job.on_error == "fail" or (job.on_error == "skip-documents" and item.ends_file):
                check_unchanged(unit)  # which would explain it
                raise _skipped_error(item)
            report.add_skipped(item)
            continue
        batch.append(item)
        num_bytes += len(item.utf8)
        if num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _skipped_error(item: SkippedDocument) -> CorpusError:
    if item.ends_file:
        advice = "repair the file, or pass --on-error skip to do without what cannot be read"
    else:
        advice = "fix it, or pass --on-error skip to skip and count such documents"
    return CorpusError(f"{item}; {advice}")
