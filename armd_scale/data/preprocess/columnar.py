"""Read documents from one column of Parquet and Arrow files, a few hundred rows at a time."""

from collections.abc import Iterator
from typing import Any

from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    make_documents,
    one_line_reason,
)

_ROWS_PER_BATCH = 256
_MAX_NAMES_CHARACTERS = 200


def num_row_groups(path: str) -> int | None:
    """Return the number of row groups of a Parquet file.

    None for a file without row groups and for a damaged file, which `read_parquet` then reports.
    """
    pyarrow = _import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.num_row_groups or None
    except (pyarrow.ArrowException, OSError):
        return None


def read_parquet(
    path: str, options: ReaderOptions, *, start: int = 0, stop: int | None = None
) -> Iterator[Document | SkippedDocument]:
    """Read the documents of the row groups `start` to `stop`; a `stop` of None is the end."""
    batches = _parquet_batches(path, options.text_key, start=start, stop=stop)
    return _read_rows(path, batches, options)


def read_arrow(path: str, options: ReaderOptions) -> Iterator[Document | SkippedDocument]:
    """Read the documents of an Arrow file, in the stream format (of `datasets`) or file format."""
    return _read_rows(path, _arrow_batches(path, options.text_key), options)


def _read_rows(
    path: str, batches: Iterator[tuple[int, Any]], options: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    pyarrow = _import_pyarrow()
    try:
        for first_row, column in batches:
            for row, value in enumerate(column, first_row):
                try:
                    yield from make_documents(value.as_py(), options)
                except UnreadableError as error:
                    yield SkippedDocument(path, str(error), row=row)
    except (pyarrow.ArrowException, OSError, UnreadableError) as error:
        yield SkippedDocument(path, f"cannot be read ({one_line_reason(error)})")


def _parquet_batches(
    path: str, key: str, *, start: int, stop: int | None
) -> Iterator[tuple[int, Any]]:
    """Yield batches of the column, each with the number of its first row in the file."""
    pyarrow = _import_pyarrow()
    # pre_buffer would read the column of all these row groups into memory ahead of time.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        _check_column(file.schema_arrow, key)
        stop_group: int = file.num_row_groups if stop is None else stop
        # Messages name rows of the file, so the rows of the groups before this range are counted.
        row = sum(file.metadata.row_group(i).num_rows for i in range(start))
        for batch in file.iter_batches(
            # One thread: workers already use every core.
            _ROWS_PER_BATCH, list(range(start, stop_group)), columns=[key], use_threads=False
        ):  # fmt: skip
            yield row, _as_binary(batch.column(0))
            row += batch.num_rows


def _arrow_batches(path: str, key: str) -> Iterator[tuple[int, Any]]:
    """Yield batches of the column, each with the number of its first row in the file."""
    pyarrow = _import_pyarrow()
    # Not memory-mapped: mapped pages count as memory of this process, which would grow with the
    # file until the scheduler's memory limit ends the job.
    with pyarrow.OSFile(path) as file:
        # `datasets` saves Arrow's stream format. Other tools use the file format, which has a
        # footer and a magic number at its start that the stream reader rejects.
        try:
            reader = pyarrow.ipc.open_stream(file)
            batches = iter(reader)
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        _check_column(reader.schema, key)
        row = 0
        for batch in batches:
            yield row, _as_binary(batch.column(batch.schema.get_field_index(key)))
            row += batch.num_rows


def _check_column(schema: Any, key: str) -> None:
    """Check that a table has a string column of this name.

    Raises:
        UnreadableError: it does not.
    """
    pyarrow = _import_pyarrow()
    if key not in schema.names:
        names = ", ".join(map(repr, schema.names))
        raise UnreadableError(f"no column {key!r}; its columns: {names[:_MAX_NAMES_CHARACTERS]}")
    kind = schema.field(key).type
    if kind not in (pyarrow.string(), pyarrow.large_string()):
        raise UnreadableError(f"the column {key!r} must hold strings, but holds {kind}")


def _as_binary(column: Any) -> Any:
    """View a string column as binary, so that a row that is not UTF-8 is skipped alone.

    A string column would raise on conversion and end the reading of the whole file.
    """
    pyarrow = _import_pyarrow()
    is_large = pyarrow.types.is_large_string(column.type)
    binary = column.view(pyarrow.large_binary() if is_large else pyarrow.binary())
    # The offsets in a file say where each row begins and ends, and nothing else keeps them inside
    # the buffer: a crafted file would turn foreign memory into text, or end the process.
    binary.validate(full=True)
    return binary


def _import_pyarrow() -> Any:
    """Import the library at first use: most corpora do not need it. Any: it has no annotations."""
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]
    import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs, reportUnusedImport]

    return pyarrow
