"""Read documents from one column of CSV and TSV files; quoted values may hold newlines."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    make_documents,
)
from armd_scale.data.preprocess.formats import content_suffix

_INVALID_CSV = "invalid CSV"
_MAX_NAMES_CHARACTERS = 200


def read_csv(
    path: str, lines: Iterable[bytes], options: ReaderOptions, *, max_field_bytes: int
) -> Iterator[Document | SkippedDocument]:
    """Read one document per row; the first row has the names of the columns.

    Args:
        path: the file, for messages, and for the delimiter: a tab in .tsv files, else a comma.
        lines: the lines of the file with their ends.
        options: names the column.
        max_field_bytes: largest value.

    Raises:
        UnreadableError: there is no such column, or a quoted value does not end.
    """
    csv.field_size_limit(max_field_bytes)
    # Strict: without it a value that never ends would silently take in the rest of the file.
    # Bytes that are not UTF-8 become surrogates, so that the row with them is skipped alone.
    rows = csv.reader(
        (line.decode("utf-8", "surrogateescape") for line in lines),
        delimiter="\t" if content_suffix(path) == ".tsv" else ",",
        strict=True,
    )
    numbered_rows = _numbered_rows(rows, max_field_bytes)
    _, names = next(numbered_rows, (0, None))
    if names is None:
        return  # the file is empty
    if isinstance(names, csv.Error):
        raise UnreadableError(f"its header is not CSV ({names})")
    column = _find_column(names, options.text_key)
    for line_number, row in numbered_rows:
        if isinstance(row, csv.Error) and len(names) == 1:
            # The lines after it may be the rest of its value: with one column, all look like rows.
            raise UnreadableError(
                f"line {line_number} is not CSV ({row}): double its quotes, or write JSON lines"
            )
        try:
            yield from _row_documents(row, len(names), column, options)
        except UnreadableError as error:
            yield SkippedDocument(path, str(error), error.reason_class, line=line_number)


def _numbered_rows(rows: Any, max_field_bytes: int) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield the rows that are not blank with the numbers of their first lines, errors in place.

    Args:
        rows: reader of the library.
        max_field_bytes: the limit that was set for the reader.

    Raises:
        UnreadableError: a quoted value does not end.
    """
    while True:
        line_number: int = rows.line_num + 1
        try:
            row: list[str] | None = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error) or "field limit" in str(error):
                # What follows cannot be told from the text of the value.
                raise UnreadableError(
                    f"the value that begins on line {line_number} does not end within "
                    f"{max_field_bytes >> 20} MiB or the file"
                ) from error
            yield line_number, error
            continue
        if row is None:
            return
        if row:
            yield line_number, row


def _row_documents(
    row: list[str] | csv.Error, num_columns: int, column: int, options: ReaderOptions
) -> Iterator[Document]:
    if isinstance(row, csv.Error):
        raise UnreadableError(f"not CSV ({row})", _INVALID_CSV)
    if len(row) != num_columns:
        # With an unquoted delimiter in a text, the column would hold a part of it.
        raise UnreadableError(
            f"has {len(row)} values, and the header {num_columns}: quote values with delimiters",
            _INVALID_CSV,
        )
    yield from make_documents(row[column].encode("utf-8", "surrogateescape"), options)


def _find_column(names: Sequence[str], key: str) -> int:
    if names.count(key) != 1:
        listed = ", ".join(map(repr, names))[:_MAX_NAMES_CHARACTERS]
        number = "no column" if key not in names else "several columns"
        raise UnreadableError(f"{number} {key!r}; its columns: {listed}")
    return names.index(key)
