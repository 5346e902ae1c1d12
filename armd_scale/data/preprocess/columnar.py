"""Documents out of one column of parquet and arrow files, a few hundred rows at a time."""

from collections.abc import Iterator
from typing import Any

from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    documents,
    one_line_reason,
)
from armd_scale.data.preprocess.sources import WorkUnit

_ROWS = 256


def read_parquet(
    path: str, unit: WorkUnit, reading: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    """The documents of a unit's row groups."""
    return _read_rows(path, _parquet_batches(path, unit, reading.text_key), reading)


def read_arrow(path: str, reading: ReaderOptions) -> Iterator[Document | SkippedDocument]:
    """The documents of an arrow file, in the form `datasets` saves or the one with a footer."""
    return _read_rows(path, _arrow_batches(path, reading.text_key), reading)


def _read_rows(
    path: str, batches: Iterator[tuple[int, Any]], reading: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    import pyarrow

    try:
        for first_row, column in batches:
            for row, value in enumerate(column, first_row):
                try:
                    yield from documents(value.as_py(), reading)
                except UnreadableError as error:
                    yield SkippedDocument(path, str(error), row=row)
    except (pyarrow.ArrowException, OSError, UnreadableError) as error:
        yield SkippedDocument(path, f"cannot be read ({one_line_reason(error)})")


def _parquet_batches(path: str, unit: WorkUnit, key: str) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        _check_column(file.schema_arrow, key)
        stop = file.num_row_groups if unit.stop is None else unit.stop
        row = sum(file.metadata.row_group(i).num_rows for i in range(unit.start))
        for batch in file.iter_batches(
            _ROWS, list(range(unit.start, stop)), columns=[key], use_threads=False
        ):
            yield row, _as_bytes(batch.column(0))
            row += batch.num_rows


def _arrow_batches(path: str, key: str) -> Iterator[tuple[int, Any]]:
    import pyarrow

    # Not memory-mapped: mapped pages would count as ours and grow with the file.
    with pyarrow.OSFile(path) as file:
        try:
            reader = pyarrow.ipc.open_stream(file)
            batches = iter(reader)
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        _check_column(reader.schema, key)
        row = 0
        for batch in batches:
            yield row, _as_bytes(batch.column(batch.schema.get_field_index(key)))
            row += batch.num_rows


def _check_column(schema: Any, key: str) -> None:
    import pyarrow

    if key not in schema.names:
        names = ", ".join(map(repr, schema.names))
        raise UnreadableError(f"no column {key!r}, its columns: {names[:200]}")
    kind = schema.field(key).type
    if kind not in (pyarrow.string(), pyarrow.large_string()):
        raise UnreadableError(f"the column {key!r} holds {kind}, not strings")


def _as_bytes(column: Any) -> Any:
    """The column as binary, so that a row that is not UTF-8 is one bad row and no more."""
    import pyarrow

    large = pyarrow.types.is_large_string(column.type)
    return column.view(pyarrow.large_binary() if large else pyarrow.binary())
