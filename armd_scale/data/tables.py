"""Documents out of one column of parquet and arrow files, a few hundred rows at a time."""

from collections.abc import Iterator
from typing import Any

from armd_scale.data.documents import Bad, Document, Reading, Unreadable, documents, reason_of
from armd_scale.data.sources import Unit

_ROWS = 256



def read_rows(
    path: str, batches: Iterator[Any], reading: Reading
) -> Iterator[Document | Bad]:
    """Documents of the batches of one column, each value taken as bytes so that one bad row is only one."""
    import pyarrow

    row = 0
    try:
        for first_row, column in batches:
            for row, value in enumerate(column, first_row):
                try:
                    text = value.as_py()
                    if text is None:
                        raise Unreadable(f"the column {reading.text_key!r} holds null, not a string")
                    yield from documents(text, reading)
                except Unreadable as error:
                    yield Bad(path, str(error), row=row)
    except (pyarrow.ArrowException, OSError, Unreadable) as error:
        yield Bad(path, f"cannot be read ({reason_of(error)})")


def parquet_batches(path: str, unit: Unit, reading: Reading) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        _check_column(file.schema_arrow, reading.text_key)
        stop = file.num_row_groups if unit.stop is None else unit.stop
        row = sum(file.metadata.row_group(i).num_rows for i in range(unit.start))
        for batch in file.iter_batches(
            batch_size=_ROWS,
            row_groups=list(range(unit.start, stop)),
            columns=[reading.text_key],
            use_threads=False,
        ):
            yield row, _as_binary(batch.column(0))
            row += batch.num_rows


def arrow_batches(path: str, reading: Reading) -> Iterator[tuple[int, Any]]:
    """Batches of an arrow file in either form: the stream that `datasets` writes, or the file with a footer."""
    import pyarrow

    # Not memory-mapped: mapped pages would count as ours and grow with the file.
    with pyarrow.OSFile(path) as file:
        try:
            reader = pyarrow.ipc.open_stream(file)
            batches = iter(reader)
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        _check_column(reader.schema, reading.text_key)
        row = 0
        for batch in batches:
            yield row, _as_binary(batch.column(batch.schema.get_field_index(reading.text_key)))
            row += batch.num_rows


def _check_column(schema: Any, key: str) -> None:
    import pyarrow

    if key not in schema.names:
        raise Unreadable(f"no column {key!r}, its columns: {', '.join(map(repr, schema.names))}")
    kind = schema.field(key).type
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        raise Unreadable(f"the column {key!r} holds {kind}, not strings")


def _as_binary(column: Any) -> Any:
    import pyarrow

    return column.cast(pyarrow.large_string()).cast(pyarrow.large_binary())
