"""Documents out of units of work: text and JSON lines here, tables and hub in their own modules.

Files are read without the `datasets` library, which serves hub names: a bad line must be named by
file and line, counted and passed over, a huge file must be read from the middle, and no worker
should spend a second on imports it does not need. Memory is bounded, by `_MAX_LINE_BYTES` for a
line and by the size of a document otherwise.
"""

import json
from collections.abc import Iterator
from io import BufferedIOBase

from armd_scale.data.preprocess.chunking import split_stream
from armd_scale.data.preprocess.columnar import read_arrow, read_parquet
from armd_scale.data.preprocess.compression import BROKEN_STREAM, COMPRESSED, open_stream
from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    document,
    documents,
    one_line_reason,
)
from armd_scale.data.preprocess.hub import read_hub
from armd_scale.data.preprocess.sources import WorkUnit

_MAX_LINE_BYTES = 32 << 20
_BOM = b"\xef\xbb\xbf"


def read_unit(unit: WorkUnit, reading: ReaderOptions) -> Iterator[Document | SkippedDocument]:
    """The documents of a unit in order, and in their places what could not be read."""
    for path in unit.paths:
        match unit.kind, reading.document_unit:
            case "parquet", _:
                yield from read_parquet(path, unit, reading)
            case "arrow", _:
                yield from read_arrow(path, reading)
            case "hub", _:
                yield from read_hub(path, unit, reading)
            case "text", "file":
                yield from _read_text(path, unit, reading)
            case "text", "paragraph":
                yield from _read_paragraphs(path, reading)
            case _:
                yield from _read_lines(path, unit, reading)


def _read_lines(
    path: str, unit: WorkUnit, reading: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    """A document a line, JSON or plain; blank lines are none."""
    place: dict[str, int] = {}
    try:
        with open_stream(path) as stream:
            for number, (offset, line) in enumerate(_lines(stream, unit.start, unit.stop), 1):
                # In the middle of a file a line's number is only looked up when it is to be shown.
                place = {"line": number} if path.endswith(COMPRESSED) else {"offset": offset}
                if line is not None and not line.strip():
                    continue
                try:
                    line = _not_too_long(line)
                    text = (
                        _json_text(line, reading) if unit.kind == "lines" else _strip_newline(line)
                    )
                    yield from documents(text, reading)
                except UnreadableError as error:
                    yield SkippedDocument(path, str(error), **place)
    except BROKEN_STREAM as error:
        yield SkippedDocument(
            path, f"cannot be read on from here ({one_line_reason(error)})", **place
        )


def _lines(
    stream: BufferedIOBase, start: int, stop: int | None
) -> Iterator[tuple[int, bytes | None]]:
    """Lines that begin in [start, stop), with their offsets; None for one too long to hold."""
    offset = start
    if start:
        stream.seek(start - 1)
        # The line that covers the byte before `start` belongs to the range before.
        offset = start - 1 + _skip_line(stream)
    while stop is None or offset < stop:
        line = stream.readline(_MAX_LINE_BYTES)
        if not line:
            return
        num_bytes = len(line)
        too_long = num_bytes == _MAX_LINE_BYTES and not line.endswith(b"\n")
        if too_long:
            num_bytes += _skip_line(stream)
        yield offset, None if too_long else line.removeprefix(_BOM) if offset == 0 else line
        offset += num_bytes


def _skip_line(stream: BufferedIOBase) -> int:
    """Reads up to the next line end; returns the number of bytes passed."""
    num_bytes = 0
    while chunk := stream.readline(1 << 20):
        num_bytes += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return num_bytes


def _json_text(line: bytes, reading: ReaderOptions) -> object:
    key = reading.text_key
    try:
        record = json.loads(_strip_newline(line).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise UnreadableError(f"not JSON (column {error.colno}: {error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 1,000 deep
        raise UnreadableError(f"not JSON that can be read ({one_line_reason(error)})") from error
    if not isinstance(record, dict):
        raise UnreadableError(f"not a JSON object with the key {key!r}")
    if key not in record:
        raise UnreadableError(f"no key {key!r} (its keys: {', '.join(map(repr, record))[:200]})")
    return record[key]


def _read_text(
    path: str, unit: WorkUnit, reading: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    """The file as one document, or cut near multiples of `document_bytes` when it is longer."""
    try:
        with open_stream(path) as stream:
            for offset, utf8, begins_cut in split_stream(
                stream, reading.max_document_bytes, start=unit.start, stop=unit.stop
            ):
                try:
                    text = utf8.removeprefix(_BOM) if offset == 0 else utf8
                    yield document(text, reading, begins_cut=begins_cut)
                except UnreadableError as error:
                    where = None if path.endswith(COMPRESSED) else offset + error.byte
                    yield SkippedDocument(path, str(error), offset=where)
    except BROKEN_STREAM as error:
        yield SkippedDocument(path, f"cannot be read ({one_line_reason(error)})")


def _read_paragraphs(path: str, reading: ReaderOptions) -> Iterator[Document | SkippedDocument]:
    """Runs of lines between blank ones; a run too long to hold ends where it is."""
    held, first_line = bytearray(), 1
    try:
        with open_stream(path) as stream:
            for number, (_, line) in enumerate(_lines(stream, 0, None), 1):
                try:
                    line = _not_too_long(line)
                except UnreadableError as error:
                    yield SkippedDocument(path, str(error), line=number)
                    continue
                if held and (not line.strip() or len(held) > _MAX_LINE_BYTES):
                    yield from _paragraph(path, held, first_line, reading)
                    held.clear()
                if line.strip():
                    first_line = first_line if held else number
                    held += line
            if held:
                yield from _paragraph(path, held, first_line, reading)
    except BROKEN_STREAM as error:
        yield SkippedDocument(path, f"cannot be read ({one_line_reason(error)})")


def _paragraph(
    path: str, held: bytearray, first_line: int, reading: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    try:
        yield from documents(_strip_newline(bytes(held)), reading)
    except UnreadableError as error:
        yield SkippedDocument(path, str(error), line=first_line)


def _not_too_long(line: bytes | None) -> bytes:
    if line is None:
        raise UnreadableError(f"a line longer than {_MAX_LINE_BYTES >> 20} MiB")
    return line


def _strip_newline(lines: bytes) -> bytes:
    return lines.rstrip(b"\r\n")
