"""The report of a finished work unit: its counts. Its file marks the unit as finished."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from armd_scale.data.manifest import MAX_EXAMPLES, RoundTrip, add_counts
from armd_scale.data.preprocess.documents import Document, SkippedDocument
from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.work_units import WorkUnit

_LENGTH_BYTES = np.dtype(np.int32).itemsize
_INDEX_BYTES = np.dtype(np.int64).itemsize


@final
@dataclass
class SplitCounts:
    """Counts of one split of one unit."""

    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    text_bytes: int = 0
    chunked_documents: int = 0

    def add(self, document: Document, num_tokens: int) -> None:
        """Count a document, or a chunk of one, that was encoded into `num_tokens` tokens."""
        # Only the first chunk counts, so that a document in many chunks counts once.
        self.documents += document.is_start
        self.chunked_documents += document.is_start and not document.is_end
        self.tokens += num_tokens
        self.text_bytes += len(document.utf8)


@final
@dataclass
class UnitReport:
    """The counts of a unit by split, and what was skipped or noticed in it."""

    splits: dict[str, SplitCounts] = field(default_factory=dict[str, SplitCounts])
    num_skipped: int = 0
    skipped_examples: list[str] = field(default_factory=list[str])
    skipped_reasons: dict[str, int] = field(default_factory=dict[str, int])
    """Number of skipped documents by the class of their reason."""
    reason_examples: dict[str, str] = field(default_factory=dict[str, str])
    """The first skipped document of each class."""
    unreadable_files: list[str] = field(default_factory=list[str])
    """The files that could not be read to their end, and why."""
    special_tokens: dict[str, int] = field(default_factory=dict[str, int])
    """How often special tokens are written out in the text."""
    round_trip: RoundTrip = field(default_factory=RoundTrip)
    content_hashes: list[str] = field(default_factory=list[str])
    """Of `input_hash.hash_unit`."""
    unit: str = ""
    """Digest of the unit and the tokenizer; see `unit_digest`."""

    def add_skipped(self, skipped: SkippedDocument) -> None:
        """Count an input that was skipped, and keep the text of the first ones."""
        self.num_skipped += 1
        # Its text may take reading the file up to it, so it is made only where it is kept.
        self.skipped_reasons = add_counts(self.skipped_reasons, {skipped.reason_class: 1})
        if skipped.reason_class not in self.reason_examples:
            self.reason_examples[skipped.reason_class] = str(skipped)
        if len(self.skipped_examples) < MAX_EXAMPLES:
            self.skipped_examples.append(str(skipped))
        if skipped.ends_file:
            self.unreadable_files.append(str(skipped))


def write_report(job: EncodeJob, unit_index: int, report: UnitReport) -> None:
    """Write the report of a unit whose part files are complete; it appears by rename.

    Raises:
        OSError: the report cannot be written.
    """
    path = job.report_path(unit_index)
    # The temporary name contains the process id: a worker that outlives its killed parent for a
    # moment may finish the same unit as the next run, and the two must not write into one file.
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(report)))
    partial.rename(path)


def unit_digest(job: EncodeJob, unit: WorkUnit) -> str:
    """Hash what the part files of a unit depend on besides the arguments of the command.

    That is the files with their sizes and modification times, the range, and the tokenizer. After
    an input was fixed, the units of the other inputs need not be encoded again.
    """
    values = (asdict(unit), job.fingerprint, job.start_tokens, job.end_token)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_report(job: EncodeJob, unit_index: int, unit: WorkUnit) -> UnitReport | None:
    """Load the report of a unit that is finished for this job.

    Returns:
        The report; None if the unit has to be encoded (again).
    """
    try:
        data: Any = json.loads(job.report_path(unit_index).read_text())
        data["splits"] = {name: SplitCounts(**counts) for name, counts in data["splits"].items()}
        data["round_trip"] = RoundTrip(**data["round_trip"])
        report = UnitReport(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if report.unit != unit_digest(job, unit):
        return None
    # The unit was encoded under another `on_error`. Encoding it again raises the error.
    if report.num_skipped and job.on_error == "fail":
        return None
    if report.unreadable_files and job.on_error != "skip":
        return None
    return report if _has_all_parts(job, unit_index, report) else None


def has_reports(folder: Path) -> bool:
    """Return whether a workspace holds the report of any finished unit with tokens."""
    return any(
        part.stat().st_size
        for report in folder.glob("[0-9]*.json")
        for part in folder.glob(f"{report.stem}*.bin")
    )


def _has_all_parts(job: EncodeJob, unit_index: int, report: UnitReport) -> bool:
    """Return whether the part files have the sizes that follow from the report.

    Part files are closed but not synced to the disk, which keeps units cheap. After a power failure
    a report may therefore exist while the files that it describes are empty or missing.
    """
    token_bytes = np.dtype(job.dtype).itemsize
    for split_name, counts in report.splits.items():
        part = job.part(unit_index, split_name)
        sizes = {
            part.bin_path: token_bytes * counts.tokens,
            part.lengths_path: _LENGTH_BYTES * counts.sequences,
            part.documents_path: _INDEX_BYTES * counts.documents,
        }
        if any(_file_size(path) != size for path, size in sizes.items()):
            return False
    return True


def _file_size(path: Path) -> int:
    """Return the size of a file, -1 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
