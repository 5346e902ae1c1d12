"""Parquet and Arrow files."""

import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.corpus import read
from tests.support.processes import FORKSERVER


def test_damaged_and_unsuitable_tables_are_reported(tmp_path: Path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "bad.arrow").write_bytes(b"nothing")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "key.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "type.parquet")
    pq.write_table(pa.table({"text": ["x", None, "y"]}), tmp_path / "null.parquet")
    for name in ("bad.parquet", "bad.arrow"):
        texts, (bad,) = read(tmp_path / name)
        assert not texts
        assert bad.startswith(f"{tmp_path / name}: cannot be read (")
    assert "no column 'text'; its columns: 'body'" in read(tmp_path / "key.parquet")[1][0]
    assert (
        "the column 'text' must hold strings, but holds int64"
        in read(tmp_path / "type.parquet")[1][0]
    )
    path = tmp_path / "null.parquet"
    assert read(path) == (["x", "y"], [f"{path} row 1: 'text' is null, not a string"])


def test_a_row_that_is_not_utf8_is_skipped_alone(tmp_path: Path):
    binary = pa.array([b"good", b"\xff", b"good"], pa.binary())
    table = pa.table({"text": binary.view(pa.string())})
    pq.write_table(table, tmp_path / "x.parquet")
    texts, bad = read(tmp_path / "x.parquet")
    assert texts == ["good", "good"]
    assert bad == [f"{tmp_path / 'x.parquet'} row 1: not UTF-8 (invalid start byte)"]


@pytest.mark.parametrize("offset", [10_000, -8, 1 << 30])
def test_offsets_outside_of_the_values_are_refused(tmp_path: Path, offset: int):
    """Unchecked, they would make text of foreign memory, or end the process."""
    offsets = pa.py_buffer(np.array([0, offset, 4], np.int32).tobytes())
    crafted = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"text")])
    batch = pa.record_batch({"text": crafted})
    for name, open_writer in (("a.arrow", pa.ipc.new_stream), ("b.arrow", pa.ipc.new_file)):
        with open_writer(tmp_path / name, batch.schema) as writer:
            writer.write_batch(batch)
        texts, (bad,) = read(tmp_path / name)
        assert not texts
        assert bad.startswith(f"{tmp_path / name}: cannot be read (")


def test_equal_texts_that_are_stored_once_are_read(tmp_path: Path):
    column = pa.array(["a", None, "b", "a"]).dictionary_encode()
    table = pa.table({"text": column})
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    for path in (tmp_path / "x.parquet", tmp_path / "x.arrow"):
        assert read(path) == (["a", "b", "a"], [f"{path} row 1: 'text' is null, not a string"])


def test_a_table_that_expands_without_end_is_reported(tmp_path: Path):
    """In one compressed page, and by a text that many rows refer to."""
    page = pa.table({"text": ["x" * (80 << 20)]})
    pq.write_table(page, tmp_path / "page.parquet", compression="zstd", use_dictionary=False)
    indices, text = pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * (1 << 20)])
    rows = pa.table({"text": pa.DictionaryArray.from_arrays(indices, text)})
    pq.write_table(
        rows, tmp_path / "rows.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30
    )
    for path in (tmp_path / "page.parquet", tmp_path / "rows.parquet"):
        assert path.stat().st_size < 100_000
        texts, (bad,) = read(path)
        assert sum(map(len, texts)) <= 64 << 20
        assert bad.startswith(f"{path}: cannot be read (it expands to more than 200 times its size")


def test_rows_are_numbered_in_the_file_across_row_groups(tmp_path: Path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["x", "y", "z", None]}), path, row_group_size=1)
    assert read(path)[1] == [f"{path} row 3: 'text' is null, not a string"]


def test_a_compressed_batch_that_expands_without_end_is_reported(tmp_path: Path):
    """Arrow allocates what the header of a batch says: 2.5 GiB, in a file of 0.1 MB."""
    path = tmp_path / "a.arrow"
    table = zeros_table(num_rows=1, row_bytes=5 << 29)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(path, table.schema, options=options) as writer:
        writer.write_table(table)
    assert_refused_in_bounded_memory(path)


def test_pages_that_are_larger_than_their_file_says_are_reported(tmp_path: Path):
    """The footer of the Parquet file says 1,000 bytes where the pages have 1 GiB."""
    path = tmp_path / "a.parquet"
    pq.write_table(
        zeros_table(num_rows=2, row_bytes=1 << 29),
        path,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=1,
        write_batch_size=1,
    )
    size = varint(pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size)
    path.write_bytes(path.read_bytes().replace(size, varint(1000, num_bytes=len(size))))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1000
    assert_refused_in_bounded_memory(path)


def zeros_table(*, num_rows: int, row_bytes: int) -> pa.Table:
    """Make a table of texts that take no memory: their pages of zeros are only read."""
    offsets = pa.py_buffer(np.arange(num_rows + 1, dtype=np.int64) * row_bytes)
    buffers = [None, offsets, pa.py_buffer(bytes(num_rows * row_bytes))]
    return pa.table({"text": pa.Array.from_buffers(pa.large_string(), num_rows, buffers)})


def varint(value: int, *, num_bytes: int = 0) -> bytes:
    """Encode a number as Thrift's compact protocol does, in at least so many bytes."""
    value *= 2  # zigzag
    groups = [value & 127]
    while value >> 7 or len(groups) < num_bytes:
        value >>= 7
        groups.append(value & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def assert_refused_in_bounded_memory(path: Path) -> None:
    """Read in a process of its own, whose memory is measured."""
    assert path.stat().st_size < 300_000
    with ProcessPoolExecutor(1, mp_context=FORKSERVER) as executor:
        texts, (bad,), num_bytes = executor.submit(read_and_measure, path).result()
    assert not texts
    assert bad.startswith(f"{path}: cannot be read (it expands to more than 200 times its size")
    assert (
        num_bytes < 13 << 28
    )  # 2 GiB, what a file of this size may need, and 1 GiB of the allocator


def read_and_measure(path: Path) -> tuple[list[str], list[str], int]:
    """Return what `read` does, and how many bytes of memory it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    texts, bad = read(path)
    return texts, bad, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
