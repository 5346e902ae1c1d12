"""What every reader yields: documents, and in their places what was none, by name."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from armd_scale.data.cutting import pieces
from armd_scale.data.sources import TextDocuments


@final
@dataclass(frozen=True)
class Reading:
    """How files turn into documents.

    Args:
        text_key: key or column that holds the text.
        text_documents: a document of a text file: the file, each line, or each paragraph (between blank lines).
        document_bytes: longer documents are cut into several, at line ends where there are any.
    """

    text_key: str
    text_documents: TextDocuments
    document_bytes: int


class Document(NamedTuple):
    """A document's text, its UTF-8 form, and whether it is the first piece of one that had to be cut."""

    text: str
    utf8: bytes
    begins_cut: bool


@final
@dataclass(frozen=True)
class Bad:
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


class Unreadable(Exception):
    """A reason for which a single document cannot be taken; becomes a `Bad` where the place is known."""




def documents(text: object | None, reading: Reading) -> Iterator[Document]:
    """The document that a value holds, or its pieces when it is too long; nothing for None."""
    if text is None:
        return
    if isinstance(text, str):
        try:
            utf8 = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Unreadable("holds half of a surrogate pair, which is no character") from error
    elif isinstance(text, bytes):
        utf8 = text
    else:
        raise Unreadable(f"the key {reading.text_key!r} holds a {json_name(text)}, not a string")
    try:
        if len(utf8) <= reading.document_bytes:
            yield decoded(utf8, begins_cut=False)
            return
        utf8.decode("utf-8")  # whole or not at all, before the first piece leaves
        for _, piece, begins_cut in pieces(io.BytesIO(utf8), reading.document_bytes):
            yield decoded(piece, begins_cut)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 ({error.reason})") from error


def decoded(utf8: bytes, begins_cut: bool) -> Document:
    return Document(utf8.decode("utf-8"), utf8, begins_cut)


def _line_at(path: str, offset: int) -> int:
    """Number of the line that holds a byte; reads all before it, so only done for what is shown."""
    line, left = 1, offset
    with Path(path).open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            line += chunk.count(b"\n")
            left -= len(chunk)
    return line


def reason_of(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).split())[:200] or type(error).__name__


def json_name(value: object) -> str:
    names = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "string" if isinstance(value, str) else "null")
