"""Read documents from one column of Parquet and Arrow files, a few hundred rows at a time."""

from collections.abc import Iterator
from typing import Any

import psutil

from armd_scale.data.preprocess.compression import MAX_EXPANSION, check_expansion, expansion_error
from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    make_documents,
    one_line_reason,
)
from armd_scale.data.preprocess.memory_limit import allocated_bytes, limit_allocations
from armd_scale.files import regular_file_status

_ROWS_PER_BATCH = 256
_BATCH_BYTES = 64 << 20
# What a batch may need while it is decompressed and decoded: some copies of the most that a file of
# its size may expand to, and what the library allocates for anything: its allocator reserves
# 1 GiB at a time.
_COPIES_OF_A_BATCH = 4
_FIXED_BYTES = 2 << 30
_MAX_NAMES_CHARACTERS = 200


def num_row_groups(path: str) -> int | None:
    """Return the number of row groups of a Parquet file.

    None for a file without row groups and for a damaged file, which `read_parquet` then reports.
    """
    pyarrow = _import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.num_row_groups or None
    except (pyarrow.ArrowException, OSError, ValueError):  # names that are not UTF-8
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
    num_bytes = 0
    try:
        file_bytes = regular_file_status(path).st_size
        for first_row, column in _bounded(batches, file_bytes):
            for row, value in enumerate(_values(column), first_row):
                num_bytes += len(value or b"")
                check_expansion(num_bytes, file_bytes)
                try:
                    yield from make_documents(value, options)
                except UnreadableError as error:
                    yield SkippedDocument(path, str(error), error.reason_class, row=row)
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, UnreadableError) as error:
        reason = f"cannot be read ({one_line_reason(error)})"
        yield SkippedDocument(path, reason, ends_file=True)


def _bounded(batches: Iterator[tuple[int, Any]], file_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield the batches, each read in no more memory than one of a file of this size may need.

    Raises:
        EOFError: one of them needs more.
    """
    num_bytes = _FIXED_BYTES + _COPIES_OF_A_BATCH * MAX_EXPANSION * file_bytes
    # Once for the file: the allocator keeps what one batch needed, and the next one may use it.
    base_bytes = allocated_bytes()
    while True:
        free_bytes = psutil.virtual_memory().available
        try:
            with limit_allocations(min(num_bytes, free_bytes), base_bytes=base_bytes):
                batch = next(batches, None)
        except MemoryError as error:
            if num_bytes > free_bytes:
                raise EOFError("a batch of its rows needs more memory than is free") from error
            raise expansion_error() from error
        if batch is None:
            return
        yield batch


def _values(column: Any) -> Iterator[bytes | None]:
    """Yield the values of a batch of rows, of which a dictionary stores equal ones once."""
    pyarrow = _import_pyarrow()
    if not isinstance(column, pyarrow.DictionaryArray):
        yield from (value.as_py() for value in _as_binary(column))
        return
    column.indices.validate(full=True)
    dictionary = _as_binary(column.dictionary)
    for index in column.indices.to_pylist():
        if index is not None and not 0 <= index < len(dictionary):
            raise UnreadableError(f"a value refers to entry {index} of {len(dictionary)}")
        yield None if index is None else dictionary[index].as_py()


def _parquet_batches(
    path: str, key: str, *, start: int, stop: int | None
) -> Iterator[tuple[int, Any]]:
    """Yield batches of the column, each with the number of its first row in the file."""
    pyarrow = _import_pyarrow()
    _check_column(pyarrow.parquet.read_schema(path), key)
    file_bytes = regular_file_status(path).st_size
    # pre_buffer would read the column of all these row groups into memory ahead of time. And a text
    # that a file stores once for many rows stays in memory once.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, read_dictionary=[key]) as file:
        stop_group: int = file.num_row_groups if stop is None else stop
        # Messages name rows of the file, so the rows of the groups before this range are counted.
        row = sum(file.metadata.row_group(i).num_rows for i in range(start))
        for index in range(start, stop_group):
            group = file.metadata.row_group(index)
            rows_per_batch = _rows_per_batch(group, file_bytes=file_bytes)
            # One thread: workers already use every core.
            for batch in file.iter_batches(
                rows_per_batch, [index], columns=[key], use_threads=False
            ):
                yield row, batch.column(0)
                row += batch.num_rows


def _rows_per_batch(group: Any, *, file_bytes: int) -> int:
    """Return how many rows of a row group to read at a time, by the mean size of its rows.

    Raises:
        EOFError: it would expand to more than any text does.
    """
    # The sizes of all columns: to ask for those of one, the library looks at more of the metadata,
    # and ends the process where that is damaged.
    num_bytes = group.total_byte_size
    check_expansion(num_bytes, file_bytes)
    row_bytes = num_bytes // max(group.num_rows, 1)
    return max(1, min(_ROWS_PER_BATCH, _BATCH_BYTES // max(row_bytes, 1)))


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
            yield row, batch.column(batch.schema.get_field_index(key))
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
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
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
