"""Read the documents of a work unit: text and JSON lines here, other formats in their own modules.

Files are read without the `datasets` library, which only serves hub datasets, for three reasons: an
invalid line must be reported by file and line number, counted and skipped; a huge file must be read
from its middle; and a worker should not spend a second on imports that it does not need.

Memory is bounded: by `_MAX_LINE_BYTES` for a line, and by the size of a document otherwise.
"""

import json
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any, cast, final

from armd_scale.data.preprocess.chunking import Chunk, split_stream
from armd_scale.data.preprocess.columnar import read_arrow, read_parquet
from armd_scale.data.preprocess.compression import READ_ERRORS, compression_suffix, open_stream
from armd_scale.data.preprocess.csv_files import read_csv
from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    decode_utf8,
    make_documents,
    one_line_reason,
)
from armd_scale.data.preprocess.hub import read_hub
from armd_scale.data.preprocess.work_units import WorkUnit

_MAX_LINE_BYTES = 32 << 20
_MAX_KEYS_CHARACTERS = 200
# Byte order mark that some editors put at the start of a UTF-8 file; not part of the text.
_BOM = b"\xef\xbb\xbf"


def read_unit(unit: WorkUnit, options: ReaderOptions) -> Iterator[Document | SkippedDocument]:
    """Read the documents of a unit in order, with a SkippedDocument for each that is invalid.

    Raises:
        CorpusError: a hub dataset cannot be loaded or its connection failed.
    """
    for path in unit.paths:
        match unit.kind, options.document_unit:
            case "parquet", _:
                yield from read_parquet(path, options, start=unit.start, stop=unit.stop)
            case "arrow", _:
                yield from read_arrow(path, options)
            case "hub", _:
                yield from read_hub(path, options, start=unit.start, stop=unit.stop)
            case "csv", _:
                yield from _read_csv(path, options)
            case "text", "file":
                yield from _read_text(path, unit, options)
            case "text", "paragraph":
                yield from _read_paragraphs(path, options)
            case _:
                yield from _read_lines(path, unit, options)


def _read_lines(
    path: str, unit: WorkUnit, options: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    """Read one document per line, JSON or plain text; blank lines are not documents."""
    position: dict[str, Any] = {}
    is_first = not unit.start  # whether no line of the file was read yet but blank ones
    try:
        with open_stream(path) as stream:
            for line_number, (offset, line) in enumerate(_lines(stream, unit.start, unit.stop), 1):
                # In a range that starts in the middle of a file the line number is not known. It is
                # looked up from the offset if the line turns out to be one that is reported. A
                # compressed file is always read from its start.
                is_compressed = compression_suffix(path) != ""
                position = {"line": line_number} if is_compressed else {"offset": offset}
                if line is not None and not line.strip():
                    continue
                if unit.kind == "lines" and is_first:
                    _check_json_lines(line)
                is_first = False
                try:
                    line = _require_line(line)
                    value = (
                        _json_value(line, options) if unit.kind == "lines" else _strip_newline(line)
                    )
                    yield from make_documents(value, options)
                except UnreadableError as error:
                    yield SkippedDocument(path, str(error), error.reason_class, **position)
    except _JsonArrayError as error:
        yield SkippedDocument(path, str(error), error.reason_class, ends_file=True, **position)
    except READ_ERRORS as error:
        reason = f"cannot be read on from here ({one_line_reason(error)})"
        yield SkippedDocument(path, reason, ends_file=True, **position)


def _lines(
    stream: BufferedIOBase, start: int, stop: int | None
) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines that start in [start, stop) with their offsets; None for a too long line.

    Each line of a file is in exactly one range, whatever the ranges are.
    """
    offset = start
    if start:
        # The line that contains the byte before `start` belongs to the range before, even if that
        # byte is its newline. Reading from that byte on skips the line's rest in both cases.
        stream.seek(start - 1)
        offset = start - 1 + _skip_line(stream, stop and stop - start + 1)
    while stop is None or offset < stop:
        line = stream.readline(_MAX_LINE_BYTES)
        if not line:
            return
        num_bytes = len(line)
        is_too_long = num_bytes == _MAX_LINE_BYTES and not line.endswith(b"\n")
        if is_too_long:
            num_bytes += _skip_line(stream, stop and stop - offset - num_bytes)
        if offset == 0:
            line = line.removeprefix(_BOM)
        yield offset, None if is_too_long else line
        offset += num_bytes


def _skip_line(stream: BufferedIOBase, limit: int | None) -> int:
    """Read up to the end of the line, or at least `limit` bytes, in bounded memory.

    The limit is the end of a range: without it, every range inside of an endless line would read
    that line to its end.

    Returns:
        The number of bytes read.
    """
    num_bytes = 0
    while limit is None or num_bytes < limit:
        block = stream.readline(1 << 20)
        num_bytes += len(block)
        if not block or block.endswith(b"\n"):
            break
    return num_bytes


def _json_value(line: bytes, options: ReaderOptions) -> object:
    """Parse a JSON line and return the value of the text key.

    Raises:
        UnreadableError: the line is not a JSON object with that key.
    """
    key = options.text_key
    try:
        record: Any = json.loads(_strip_newline(line).decode("utf-8"))
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of the line"
        raise UnreadableError(f"not UTF-8 ({where})", "not UTF-8") from error
    except json.JSONDecodeError as error:
        where = f"column {error.colno}: {error.msg}"
        raise UnreadableError(f"not JSON ({where})", "invalid JSON") from error
    except (ValueError, RecursionError) as error:
        # Limits of Python's parser: integers of over 4,300 digits, brackets about 1,000 deep.
        reason = f"not JSON that can be read ({one_line_reason(error)})"
        raise UnreadableError(reason, "invalid JSON") from error
    if not isinstance(record, dict):
        raise UnreadableError(f"not a JSON object with the key {key!r}", "not a JSON object")
    values = cast(dict[str, object], record)
    if key not in values:
        keys = ", ".join(map(repr, values))[:_MAX_KEYS_CHARACTERS]
        raise UnreadableError(f"no key {key!r} (its keys: {keys})", "no such key")
    return values[key]


@final
class _JsonArrayError(UnreadableError):
    """A file holds one JSON value over many lines, not one in each line."""


def _check_json_lines(first_line: bytes | None) -> None:
    """Check that the first line of a file can be one of JSON lines.

    Some lines of an array over many lines are objects by chance and others are not, so a part of
    the documents would be read and the rest skipped.

    Raises:
        _JsonArrayError: it begins an array or an object that ends on a later line.
    """
    start = (first_line or b"").strip()
    if start[:1] != b"[" and start != b"{":
        return
    found, command = ("an array", ".[]") if start[:1] == b"[" else ("an object over lines", ".")
    raise _JsonArrayError(
        f"must hold one JSON object per line, but begins with {found}: write it as JSON lines, for "
        f"example by jq -c '{command}' IN.json > OUT.jsonl",
        "not JSON lines",
    )


def _read_csv(path: str, options: ReaderOptions) -> Iterator[Document | SkippedDocument]:
    try:
        with open_stream(path) as stream:
            # A line over the limit is a value over the limit.
            lines = (_require_line(line) for _, line in _lines(stream, 0, None))
            yield from read_csv(path, lines, options, max_field_bytes=_MAX_LINE_BYTES)
    except (*READ_ERRORS, UnreadableError) as error:
        reason = f"cannot be read ({one_line_reason(error)})"
        yield SkippedDocument(path, reason, ends_file=True)


def _read_text(
    path: str, unit: WorkUnit, options: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    """Read a text file, or a range of it, as one document in chunks."""
    first_chunk, is_open = b"", False
    try:
        if unit.start:
            with open_stream(path) as stream:
                first_chunk = _text_of(next(split_stream(stream, options.max_document_bytes)))
        with open_stream(path) as stream:
            for chunk in split_stream(
                stream, options.max_document_bytes, start=unit.start, stop=unit.stop
            ):
                utf8 = _text_of(chunk)
                first_chunk = first_chunk or utf8
                is_start, is_open = chunk.offset == 0, not chunk.is_last
                try:
                    if is_start and chunk.is_last:
                        yield from make_documents(utf8, options)
                    else:
                        yield Document(
                            decode_utf8(utf8), utf8, first_chunk, is_start, chunk.is_last
                        )
                except UnreadableError as error:
                    # Offsets in a compressed file are not positions that an editor could show.
                    is_compressed = compression_suffix(path) != ""
                    offset = None if is_compressed else chunk.offset + error.byte
                    yield SkippedDocument(path, str(error), error.reason_class, offset=offset)
                    # The other chunks may be in other units, so the document goes on without this.
                    if not (is_start and chunk.is_last):
                        yield Document("", b"", first_chunk, is_start, chunk.is_last)
    except READ_ERRORS as error:
        if is_open and unit.stop is None:
            yield Document("", b"", first_chunk, is_start=False)
        yield SkippedDocument(path, f"cannot be read ({one_line_reason(error)})", ends_file=True)


def _text_of(chunk: Chunk) -> bytes:
    return chunk.content.removeprefix(_BOM) if chunk.offset == 0 else chunk.content


def _read_paragraphs(path: str, options: ReaderOptions) -> Iterator[Document | SkippedDocument]:
    """Read one document per paragraph: lines without a blank line between them.

    A paragraph over `_MAX_LINE_BYTES` ends after the line that reaches that size.
    """
    paragraph, first_line = bytearray(), 1
    try:
        with open_stream(path) as stream:
            for line_number, (_, line) in enumerate(_lines(stream, 0, None), 1):
                try:
                    line = _require_line(line)
                except UnreadableError as error:
                    yield SkippedDocument(path, str(error), error.reason_class, line=line_number)
                    continue
                if paragraph and (not line.strip() or len(paragraph) > _MAX_LINE_BYTES):
                    yield from _paragraph_documents(path, paragraph, first_line, options)
                    paragraph.clear()
                if line.strip():
                    first_line = first_line if paragraph else line_number
                    paragraph += line
            if paragraph:
                yield from _paragraph_documents(path, paragraph, first_line, options)
    except READ_ERRORS as error:
        yield SkippedDocument(path, f"cannot be read ({one_line_reason(error)})", ends_file=True)


def _paragraph_documents(
    path: str, paragraph: bytearray, first_line: int, options: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    try:
        yield from make_documents(_strip_newline(bytes(paragraph)), options)
    except UnreadableError as error:
        yield SkippedDocument(path, str(error), error.reason_class, line=first_line)


def _require_line(line: bytes | None) -> bytes:
    if line is None:
        raise UnreadableError(f"a line longer than {_MAX_LINE_BYTES >> 20} MiB", "line too long")
    return line


def _strip_newline(lines: bytes) -> bytes:
    return lines.rstrip(b"\r\n")
