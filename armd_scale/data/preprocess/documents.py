"""What every reader yields: documents, and in their places what was none, by name."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, final

from armd_scale.data.preprocess.chunking import split_stream

TextDocuments = Literal["file", "line", "paragraph"]


@final
@dataclass(frozen=True)
class ReaderOptions:
    """How files turn into documents.

    Args:
        text_key: key or column that holds the text.
        text_documents: a document of a text file: all of it, a line, or a paragraph.
        document_bytes: longer documents are cut into several, at line ends where there are any.
        keep_empty: whether an empty text is a document, which it is when its end token remains.
    """

    text_key: str = "text"
    document_unit: TextDocuments = "file"
    max_document_bytes: int = 1 << 20
    keep_empty: bool = True


class Document(NamedTuple):
    """A document's text, its UTF-8 form, and whether it begins one that had to be cut."""

    text: str
    utf8: bytes
    is_first_chunk: bool


@final
@dataclass(frozen=True)
class SkippedDocument:
    """Something that is no document: where it was, and why."""

    path: str
    reason: str
    line: int | None = None
    offset: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        if self.row is not None:
            return f"{self.path} row {self.row}: {self.reason}"
        line = self.line
        if line is None and self.offset is not None:
            line = _line_at(self.path, self.offset)
        return f"{self.path}:{line}: {self.reason}" if line else f"{self.path}: {self.reason}"


class UnreadableError(Exception):
    """Why a single document cannot be taken; becomes a `Bad` where the place is known.

    Args:
        reason: in a few words.
        byte: where in the document.
    """

    def __init__(self, reason: str, *, byte: int = 0) -> None:
        super().__init__(reason)
        self.byte = byte


def documents(text: object, reading: ReaderOptions) -> Iterator[Document]:
    """The document that a value holds, or its pieces when it is too long.

    Raises:
        UnreadableError: the value is not text.
    """
    if isinstance(text, str):
        try:
            utf8 = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UnreadableError(
                "holds half of a surrogate pair, which is no character"
            ) from error
    elif isinstance(text, bytes):
        utf8 = text
    else:
        raise UnreadableError(f"{reading.text_key!r} holds {_json_name(text)}, not a string")
    whole = document(utf8, reading)
    if len(utf8) <= reading.max_document_bytes:
        yield whole
        return
    for _, piece, begins_cut in split_stream(io.BytesIO(utf8), reading.max_document_bytes):
        yield document(piece, reading, begins_cut=begins_cut)


def document(utf8: bytes, reading: ReaderOptions, *, begins_cut: bool = False) -> Document:
    """The document of some bytes.

    Raises:
        UnreadableError: they are not UTF-8, or empty where that is no document.
    """
    if not utf8 and not reading.keep_empty:
        raise UnreadableError("is empty, and no end token is added that would remain of it")
    try:
        return Document(utf8.decode("utf-8"), utf8, begins_cut)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 ({error.reason})", byte=error.start) from error


def one_line_reason(error: Exception) -> str:
    """What an exception of a reader says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).split())[:200] or type(error).__name__


def _line_at(path: str, offset: int) -> int:
    """Number of the line that holds a byte; reads all before it, so only done for what is shown."""
    line, left = 1, offset
    with Path(path).open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            line += chunk.count(b"\n")
            left -= len(chunk)
    return line


def _json_name(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), "null" if value is None else "an object")
