"""Parquet and Arrow files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.corpus import read


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
