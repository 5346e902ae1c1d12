"""Documents out of units of work: text and JSON lines here, tables and hub datasets through their modules.

Files are read without the `datasets` library, which serves hub names: a bad line must be named by file and line,
counted and passed over, a huge file must be read from the middle, and no worker should spend a second on imports
it does not need. Memory is bounded, by `_MAX_LINE_BYTES` for a line and by the size of a document otherwise.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from armd_scale.data.cutting import pieces
from armd_scale.data.documents import (
    Bad,
    Document,
    Reading,
    Unreadable,
    decoded,
    documents,
    json_name,
    reason_of,
)
from armd_scale.data.hub import read_hub
from armd_scale.data.sources import Unit
from armd_scale.data.tables import arrow_batches, parquet_batches, read_rows

_MAX_LINE_BYTES = 32 << 20
_BOM = b"\xef\xbb\xbf"


def read_unit(unit: Unit, reading: Reading) -> Iterator[Document | Bad]:
    """The documents of a unit in order, and in their places what could not be read."""
    for path in unit.paths:
        match unit.kind:
            case "lines":
                yield from _read_lines(path, unit, reading, json_lines=True)
            case "text" if reading.text_documents == "line":
                yield from _read_lines(path, unit, reading, json_lines=False)
            case "text" if reading.text_documents == "paragraph":
                yield from _read_paragraphs(path, reading)
            case "text":
                yield from _read_text(path, unit, reading)
            case "parquet":
                yield from read_rows(path, parquet_batches(path, unit, reading), reading)
            case "arrow":
                yield from read_rows(path, arrow_batches(path, reading), reading)
            case "hub":
                yield from read_hub(path, unit.start, unit.stop, reading)


def _read_lines(
    path: str, unit: Unit, reading: Reading, *, json_lines: bool
) -> Iterator[Document | Bad]:
    take = _text_of_json if json_lines else _text_of_line
    place: dict[str, int] = {}
    try:
        with _open(path) as stream:
            for number, (offset, line) in enumerate(_lines(stream, unit.start, unit.stop), 1):
                place = {"line": number} if _compressed(path) else {"offset": offset}
                try:
                    yield from documents(take(line, reading.text_key), reading)
                except Unreadable as error:
                    yield Bad(path, str(error), **place)
    except _broken_stream_errors() as error:
        yield Bad(path, f"cannot be read on from here ({reason_of(error)})", **place)


def _lines(stream: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes | None]]:
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


def _skip_line(stream: BinaryIO) -> int:
    """Reads up to the next line end; returns the number of bytes passed."""
    num_bytes = 0
    while chunk := stream.readline(1 << 20):
        num_bytes += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return num_bytes


def _text_of_line(line: bytes | None, key: str) -> bytes | None:
    del key  # shares its form with _text_of_json
    if line is None:
        raise Unreadable(f"a line longer than {_MAX_LINE_BYTES >> 20} MiB")
    return line.rstrip(b"\r\n") if line.strip() else None


def _text_of_json(line: bytes | None, key: str) -> object | None:
    """The text of a JSON line; None for a blank one."""
    if line is None:
        raise Unreadable(f"a line longer than {_MAX_LINE_BYTES >> 20} MiB")
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte {error.start} of the line)") from error
    except (ValueError, RecursionError) as error:
        detail = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise Unreadable(f"not JSON ({detail})") from error
    if not isinstance(record, dict):
        raise Unreadable(f"holds a JSON {json_name(record)}, not an object with the key {key!r}")
    if key not in record:
        keys = ", ".join(map(repr, list(record)[:8])) or "none"
        raise Unreadable(f"no key {key!r} (its keys: {keys})")
    if record[key] is None:
        raise Unreadable(f"the key {key!r} holds null, not a string")
    return record[key]


def _read_text(path: str, unit: Unit, reading: Reading) -> Iterator[Document | Bad]:
    """The file as one document, or cut near multiples of `document_bytes` when it is longer."""
    try:
        with _open(path) as stream:
            for offset, utf8, begins_cut in pieces(
                stream, reading.document_bytes, start=unit.start, stop=unit.stop
            ):
                try:
                    yield decoded(utf8.removeprefix(_BOM) if offset == 0 else utf8, begins_cut)
                except UnicodeDecodeError as error:
                    where = None if _compressed(path) else offset + error.start
                    yield Bad(path, f"not UTF-8 ({error.reason})", offset=where)
    except _broken_stream_errors() as error:
        yield Bad(path, f"cannot be read ({reason_of(error)})")


def _read_paragraphs(path: str, reading: Reading) -> Iterator[Document | Bad]:
    held, first_line = bytearray(), 1
    try:
        with _open(path) as stream:
            for number, (_, line) in enumerate(_lines(stream, 0, None), 1):
                if line is None:
                    yield Bad(path, f"a line longer than {_MAX_LINE_BYTES >> 20} MiB", line=number)
                    continue
                if line.strip():
                    first_line = first_line if held else number
                    held += line
                if held and (not line.strip() or len(held) > _MAX_LINE_BYTES):
                    yield from _paragraph(held, path, first_line, reading)
                    held.clear()
            if held:
                yield from _paragraph(held, path, first_line, reading)
    except _broken_stream_errors() as error:
        yield Bad(path, f"cannot be read ({reason_of(error)})")


def _paragraph(
    held: bytearray, path: str, first_line: int, reading: Reading
) -> Iterator[Document | Bad]:
    try:
        yield from documents(bytes(held).rstrip(b"\r\n"), reading)
    except Unreadable as error:
        yield Bad(path, str(error), line=first_line)


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    if path.endswith(".gz"):
        with gzip.open(path) as stream:
            yield cast("BinaryIO", stream)
    elif path.endswith(".zst"):
        import zstandard

        with (
            Path(path).open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
            io.BufferedReader(cast("io.RawIOBase", stream), 1 << 20) as buffered,
        ):
            yield cast("BinaryIO", buffered)
    else:
        with Path(path).open("rb") as stream:
            yield stream


def _broken_stream_errors() -> tuple[type[Exception], ...]:
    """What a missing, unreadable or damaged file raises."""
    import zstandard

    return (OSError, EOFError, zlib.error, zstandard.ZstdError)


def _compressed(path: str) -> bool:
    return path.endswith((".gz", ".zst"))


