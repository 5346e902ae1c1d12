"""One unit of work: its documents are encoded into part files, which appear whole or not at all."""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from io import BufferedWriter
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from armd_scale.data.indexed_format import IndexedPart
from armd_scale.data.manifest import MAX_EXAMPLES
from armd_scale.data.preprocess.documents import Document, ReaderOptions, SkippedDocument
from armd_scale.data.preprocess.readers import read_unit
from armd_scale.data.preprocess.sources import WorkUnit
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import CorpusError, ShardError

# Enough for the tokenizers to work on end, little enough that their results stay small in memory.
_BATCH_BYTES = 1 << 19


@final
@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What all units share; crosses to the workers once.

    Args:
        folder: of the part files.
        tokenizer: folder of the tokenizer.
        reading: how files turn into documents.
        end_token: appended to every document, or None.
        dtype: name of the token width.
        sides: names of the sides of the split; one empty name without a split.
        bounds: of each side, the upper end of its share of the 2^64 hashes.
        on_error: what to do about something that is no document.
    """

    folder: Path
    tokenizer: Path
    reading: ReaderOptions
    end_token: int | None
    dtype: str
    sides: tuple[str, ...]
    bounds: tuple[int, ...]
    on_error: Literal["skip", "refuse"]


@final
@dataclass
class SplitCounts:
    """Counts of one side of one unit."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    cut_documents: int = 0

    def add(self, document: Document, num_tokens: int) -> None:
        """Counts a document of that many tokens."""
        self.documents += 1
        self.tokens += num_tokens
        self.text_bytes += len(document.utf8)
        self.cut_documents += document.is_first_chunk


@final
@dataclass
class UnitReport:
    """What became of a unit; its file marks the unit as finished."""

    sides: dict[str, SplitCounts] = field(default_factory=dict)
    skipped: int = 0
    examples: list[str] = field(default_factory=list)


def assign_split(utf8: bytes, bounds: Sequence[int]) -> int:
    """The side of a split that a document falls on, by its text alone.

    So neither order nor workers nor other documents matter, and exact duplicates fall together.
    """
    value = int.from_bytes(blake2b(utf8, digest_size=8, person=b"armd split").digest())
    return next(side for side, bound in enumerate(bounds) if value < bound)


def encode_unit(
    job: EncodeJob, tokenizer: Tokenizer, *, number: int, unit: WorkUnit
) -> Iterator[int]:
    """Encodes a unit into its part files, batch by batch.

    Yields:
        documents done, between batches, so that the caller can stop.

    Raises:
        CorpusError: something is no document, and the job refuses such.
        ShardError: the part files cannot be written.
    """
    report = UnitReport({side: SplitCounts() for side in job.sides})
    with translate_os_errors(job.folder):
        with _SplitWriters(job, number) as sides:
            for batch in _batches(read_unit(unit, job.reading), report, job):
                texts = [document.text for document in batch]
                for document, ids in zip(batch, tokenizer.encode_batch(texts), strict=True):
                    side = job.sides[assign_split(document.utf8, job.bounds)]
                    report.sides[side].add(document, sides.write(side, ids))
                yield len(batch)
        # Only now, when closing the files has brought all of them to the disk.
        _write_report(job, number, report)


def finished_report(job: EncodeJob, number: int) -> UnitReport | None:
    """The report of a unit whose part files are all there; None when it must be encoded (again)."""
    try:
        data = json.loads(_report_path(job, number).read_text())
    except (OSError, ValueError):
        return None
    report = UnitReport(
        {side: SplitCounts(**tally) for side, tally in data["sides"].items()},
        data["skipped"],
        data["examples"],
    )
    if report.skipped and job.on_error == "refuse":
        return None
    width = np.dtype(job.dtype).itemsize
    # After a power cut a file may be there without its content.
    whole = all(
        _size(part.bin_path) == width * tally.tokens
        and _size(part.lengths_path) == 4 * tally.documents
        for side, tally in report.sides.items()
        for part in [part_of(job, number, side=side, documents=tally.documents)]
    )
    return report if whole else None


def part_of(job: EncodeJob, number: int, *, side: str, documents: int) -> IndexedPart:
    """The part files of one side of a finished unit."""
    stem = f"{number:07d}{side}"
    return IndexedPart(job.folder / f"{stem}.bin", job.folder / f"{stem}.lengths", 0, documents)


@contextmanager
def translate_os_errors(folder: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into a sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "make the folder writable"
        raise ShardError(
            f"{error.filename or folder} cannot be written ({error.strerror}): {advice} and run "
            "the same command again, which keeps what is finished"
        ) from error


def _batches(
    items: Iterator[Document | SkippedDocument], report: UnitReport, job: EncodeJob
) -> Iterator[list[Document]]:
    """Documents in batches of bounded size; what is none goes to the report, or is refused."""
    batch: list[Document] = []
    num_bytes = 0
    for item in items:
        if isinstance(item, SkippedDocument):
            if job.on_error == "refuse":
                raise CorpusError(
                    f"{item}; mend it, or pass --on-error skip to leave such out and count them"
                )
            report.skipped += 1
            if len(report.examples) < MAX_EXAMPLES:
                report.examples.append(str(item))
            continue
        batch.append(item)
        num_bytes += len(item.utf8)
        if num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


@final
class _SplitWriters:
    """The open part files of a unit, one pair a side."""

    def __init__(self, job: EncodeJob, number: int) -> None:
        self._dtype = np.dtype(job.dtype)
        self._end = np.array([] if job.end_token is None else [job.end_token], self._dtype)
        self._parts = {side: part_of(job, number, side=side, documents=0) for side in job.sides}
        self._stack = ExitStack()
        self._files: dict[str, tuple[BufferedWriter, BufferedWriter]] = {}

    def __enter__(self) -> "_SplitWriters":
        for side, part in self._parts.items():
            tokens = self._stack.enter_context(part.bin_path.open("wb"))
            self._files[side] = tokens, self._stack.enter_context(part.lengths_path.open("wb"))
        return self

    def write(self, side: str, ids: np.ndarray) -> int:
        """Appends a document; returns its length in tokens."""
        tokens, lengths = self._files[side]
        count = ids.size + self._end.size
        tokens.write(ids.astype(self._dtype).tobytes() + self._end.tobytes())
        lengths.write(np.int32(count).tobytes())
        return count

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def _write_report(job: EncodeJob, number: int, report: UnitReport) -> None:
    path = _report_path(job, number)
    # Named by process: a worker that outlived its killed parent may be finishing the same unit.
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(asdict(report)))
    unfinished.rename(path)


def _report_path(job: EncodeJob, number: int) -> Path:
    return job.folder / f"{number:07d}.json"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
