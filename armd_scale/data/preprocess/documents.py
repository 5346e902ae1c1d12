"""What every reader yields: documents, and in their place the inputs that had to be skipped."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, final

from armd_scale.data.preprocess.chunking import split_stream

DocumentUnit: TypeAlias = Literal["file", "line", "paragraph"]
UNREADABLE_FILE = "unreadable file"
"""Class of a reason: (the rest of) a file cannot be read; it counts as one skipped document."""
EMPTY = "empty"
"""Class of a reason: a document without text, while no end token is appended."""
_MAX_REASON_CHARACTERS = 200


@final
@dataclass(frozen=True)
class ReaderOptions:
    """How files are turned into documents."""

    text_key: str = "text"
    """JSON key or table column that holds the text."""
    document_unit: DocumentUnit = "file"
    """What one document of a plain text file is."""
    max_document_bytes: int = 1 << 20
    """Longer documents are read and encoded in chunks, which end at line ends where possible."""
    keep_empty: bool = True
    """Whether an empty text is a document. It is one if an end token is appended to it."""


class Document(NamedTuple):
    """The text of a document, or of one chunk of a document that is too long to be read at once.

    Attributes:
        text: the text.
        utf8: the same text as UTF-8 bytes.
        first_chunk: bytes of the document's first chunk, which decide the split of all its chunks.
        is_start: whether the document begins with it.
        is_end: whether the document ends with it.
    """

    text: str
    utf8: bytes
    first_chunk: bytes
    is_start: bool = True
    is_end: bool = True


@final
@dataclass(frozen=True)
class SkippedDocument:
    """An input that is not a document: where it is, and why.

    The position is given by whichever of `line`, `offset` (in bytes) and `row` the reader knows.
    """

    path: str
    reason: str
    reason_class: str = UNREADABLE_FILE
    """Short name of the reason, the same for all documents that were skipped for it."""
    line: int | None = None
    offset: int | None = None
    row: int | None = None
    ends_file: bool = False
    """Whether nothing of the file can be read from there on: not one document, but the rest."""

    def __str__(self) -> str:
        # Editors and compilers understand file:line; a row of a table has no line.
        if self.row is not None:
            return f"{self.path} row {self.row}: {self.reason}"
        line = self.line
        if line is None and self.offset is not None:
            line = _line_at(self.path, self.offset)
        return f"{self.path}:{line}: {self.reason}" if line else f"{self.path}: {self.reason}"


class UnreadableError(Exception):
    """One document cannot be read. The reader that knows its position yields a SkippedDocument.

    Args:
        reason: in a few words.
        reason_class: short name of the reason; see `SkippedDocument`.
        byte: position of the error in the document.
    """

    def __init__(self, reason: str, reason_class: str = UNREADABLE_FILE, *, byte: int = 0) -> None:
        super().__init__(reason)
        self.reason_class = reason_class
        self.byte = byte


def make_documents(value: object, options: ReaderOptions) -> Iterator[Document]:
    """Make the document of a JSON or table value; its chunks if the text is too long.

    Args:
        value: text as str or as UTF-8 bytes.
        options: the size limit, and the key for messages.

    Raises:
        UnreadableError: the value is not text.
    """
    if isinstance(value, str):
        try:
            utf8 = value.encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON may escape a surrogate alone ("\ud800"), which no UTF-8 text can contain.
            raise UnreadableError(
                "contains one half of a surrogate pair, which is not a character",
                "invalid character",
            ) from error
    elif isinstance(value, bytes):
        utf8 = value
    else:
        name = _json_type_name(value)
        raise UnreadableError(
            f"{options.text_key!r} is {name}, not a string",
            "null" if value is None else "not a string",
        )
    if not utf8 and not options.keep_empty:
        raise UnreadableError("is empty, and there is no end token that would remain of it", EMPTY)
    # Decoded as a whole first, even if it is split after that: a text that is not UTF-8 somewhere
    # is skipped as a whole, and none of its chunks reaches the shards.
    text = decode_utf8(utf8)
    if len(utf8) <= options.max_document_bytes:
        yield Document(text, utf8, utf8)
        return
    first_chunk = b""
    for chunk in split_stream(io.BytesIO(utf8), options.max_document_bytes):
        first_chunk = first_chunk or chunk.content
        text = decode_utf8(chunk.content)
        yield Document(text, chunk.content, first_chunk, chunk.offset == 0, chunk.is_last)


def decode_utf8(utf8: bytes) -> str:
    """Decode UTF-8.

    Raises:
        UnreadableError: the bytes are not UTF-8.
    """
    try:
        return utf8.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"not UTF-8 ({error.reason})", "not UTF-8", byte=error.start
        ) from error


def one_line_reason(error: Exception) -> str:
    """Return the message of a reader's exception as one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:_MAX_REASON_CHARACTERS] or type(error).__name__


def _line_at(path: str, offset: int) -> int | None:
    """Return the number of the line that contains a byte, from 1.

    This reads the file up to that byte. Readers that start in the middle of a file therefore keep
    the offset, and only the few skipped documents that are shown to the user are looked up.
    """
    line, num_bytes_left = 1, offset
    try:
        with Path(path).open("rb") as file:
            while num_bytes_left > 0 and (block := file.read(min(num_bytes_left, 1 << 20))):
                line += block.count(b"\n")
                num_bytes_left -= len(block)
    except OSError:  # the file cannot be read any more; the message does without the line
        return None
    return line


def _json_type_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():  # before int, because bool is a subclass of it
            return "a boolean"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
