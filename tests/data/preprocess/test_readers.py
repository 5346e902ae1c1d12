"""Reading documents: every format gives the same, and what is invalid is reported."""

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.preprocess.documents import Document, ReaderOptions, SkippedDocument
from armd_scale.data.preprocess.readers import read_unit
from armd_scale.data.preprocess.sources import find_sources
from armd_scale.data.preprocess.work_units import WorkUnit, make_work_units
from tests.support.corpus import TEXTS, json_lines, read


def write_everywhere(folder: Path) -> dict[str, Path]:
    """The same documents in every format."""
    lines = json_lines(TEXTS)
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    frames = zstandard.compress(lines[:20]) + zstandard.compress(lines[20:])
    (folder / "a.jsonl.zst").write_bytes(frames)
    (folder / "a.jsonl.bz2").write_bytes(bz2.compress(lines))
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(lines))
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("other", "text"), *enumerate(TEXTS)])
    table = pa.table({"other": [1] * len(TEXTS), "text": TEXTS})
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved", num_shards=2)
    return {path.name: path for path in folder.iterdir()}


def test_every_format_gives_the_same_documents(tmp_path: Path):
    files = write_everywhere(tmp_path)
    assert len(files) == 9
    for name, path in files.items():
        assert read(path) == (TEXTS, []), name


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON (column 10: Unterminated string starting at)"),
        (b'{"body": "x", "id": 1}', "no key 'text' (its keys: 'body', 'id')"),
        (b'{"text": 5}', "'text' is a number, not a string"),
        (b'{"text": null}', "'text' is null, not a string"),
        (b'{"text": ["x"]}', "'text' is an array, not a string"),
        (b'["x"]', "not a JSON object with the key 'text'"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 11 of the line)"),
        (b'{"text": "\\ud800"}', "contains one half of a surrogate pair, which is not a character"),
        (b'{"text": NaN}', "'text' is a number, not a string"),
        (
            b'{"id": ' + b"9" * 5000 + b', "text": "x"}',
            "not JSON that can be read (Exceeds the limit",
        ),
        (b'{"text": "x", "id": ' + b"[" * 100_000, "not JSON that can be read (maximum recursion"),
        (b"[" * 100_000, "not JSON that can be read (maximum recursion depth exceeded"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_invalid_lines_are_reported_and_skipped(
    tmp_path: Path, line: bytes, reason: str, suffix: str
):
    path = tmp_path / f"bad{suffix}"
    content = b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}'
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    texts, bad = read(path)
    assert texts == ["before", "after"]
    assert len(bad) == 1
    assert bad[0].startswith(f"{path}:3: {reason}")


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'[\n{"text":"a"},\n{"text":"b"}\n]\n', "an array"),
        (b'\n  [{"text":"a"},\n{"text":"b"}\n]', "an array"),
        (b'\xef\xbb\xbf[{"text":"a"}]', "an array"),
        (b'{\n"rows": [\n{"text": "a"}\n]}', "an object over lines"),
    ],
)
def test_json_over_many_lines_is_no_json_lines(
    tmp_path: Path, name: str, content: bytes, found: str
):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    texts, (bad,) = read(path)
    assert not texts
    assert f"must hold one JSON object per line, but begins with {found}: write it as" in bad


def test_line_numbers_are_right_in_the_middle_of_a_large_file(tmp_path: Path):
    path = tmp_path / "large.jsonl"
    good = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    path.write_bytes(good * 2500 + b"broken\n" + good * 10)
    sources, _ = find_sources([str(path)])
    units = make_work_units(sources, ReaderOptions())
    assert len(units) == 3
    texts, bad = read(path)
    assert len(texts) == 2510
    assert bad == [f"{path}:2501: not JSON (column 1: Expecting value)"]


def test_ranges_inside_an_endless_line_do_not_read_to_its_end(tmp_path: Path):
    path = tmp_path / "endless.jsonl"
    with path.open("wb") as file:
        file.truncate(80 << 20)  # without blocks on the disk: all of it is NUL
    before = num_bytes_read()
    texts, bad = read(path)
    assert (texts, bad) == ([], [f"{path}:1: a line longer than 32 MiB"])
    # Every range reads a little over its end, and the message counts lines. To the end of the file
    # it would be 40 times its size.
    assert num_bytes_read() - before < 3 * (80 << 20)


def num_bytes_read() -> int:
    """Bytes that this process has read so far, from the disk or the page cache."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=20),
    step=st.integers(1, 50),
)
def test_byte_ranges_contain_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], step: int
):
    path = tmp_path_factory.mktemp("ranges") / "x.txt"
    content = "\n".join(line.hex() for line in lines).encode()
    path.write_bytes(content)
    reading = ReaderOptions(document_unit="line")
    found = [
        item.text
        for start in range(0, len(content), step)
        for item in read_unit(WorkUnit("text", (str(path),), 0, start, start + step), reading)
        if not isinstance(item, SkippedDocument)
    ]
    assert found == [line.hex() for line in lines if line]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_long_files_are_one_document_in_chunks_that_end_at_line_ends(tmp_path: Path, suffix: str):
    text = "".join(f"line {i} with some words\n" for i in range(1000))
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"long.txt{suffix}"
    path.write_bytes(pack(text.encode()))
    texts, bad = read(path, max_document_bytes=4096)
    assert "".join(texts) == text
    assert not bad
    assert len(texts) == 7
    assert all(piece.endswith("\n") for piece in texts)
    chunks = read_chunks(path, max_document_bytes=4096)
    assert [(chunk.is_start, chunk.is_end) for chunk in chunks] == [
        (i == 0, i == 6) for i in range(7)
    ]
    assert {chunk.first_chunk for chunk in chunks} == {texts[0].encode()}


@given(text=st.text(alphabet="a \né🙂", max_size=5000), step=st.integers(1, 4))
def test_ranges_of_a_long_file_agree_on_its_start_end_and_first_chunk(
    tmp_path_factory: pytest.TempPathFactory, text: str, step: int
):
    path = tmp_path_factory.mktemp("ranges") / "x.txt"
    path.write_text(text, newline="")
    options = ReaderOptions(max_document_bytes=1024)
    chunks = [
        item
        for start in range(0, max(1, path.stat().st_size), step * 1024)
        for item in read_unit(
            WorkUnit("text", (str(path),), 0, start, start + step * 1024), options
        )
        if not isinstance(item, SkippedDocument)
    ]
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.is_start for chunk in chunks] == [i == 0 for i in range(len(chunks))]
    assert [chunk.is_end for chunk in chunks] == [i == len(chunks) - 1 for i in range(len(chunks))]
    assert {chunk.first_chunk for chunk in chunks} == {chunks[0].utf8}


def read_chunks(path: Path, **changes: object) -> list[Document]:
    options = ReaderOptions(**changes)  # type: ignore[arg-type]
    units = make_work_units(find_sources([str(path)])[0], options)
    items = [item for unit in units for item in read_unit(unit, options)]
    return [item for item in items if isinstance(item, Document)]


def test_a_part_that_is_not_utf8_leaves_the_bounds_of_its_document(tmp_path: Path):
    path = tmp_path / "x.txt"
    for bad in range(3):
        parts = [b"a" * 1024, b"b" * 1024, b"c" * 1000]
        parts[bad] = b"\xff" * len(parts[bad])
        path.write_bytes(b"".join(parts))
        chunks = read_chunks(path, max_document_bytes=1024)
        assert [chunk.is_start for chunk in chunks] == [True, False, False]
        assert [chunk.is_end for chunk in chunks] == [False, False, True]
        assert [len(chunk.text) for chunk in chunks].count(0) == 1
        assert len(read(path, max_document_bytes=1024)[1]) == 1


def test_a_damaged_long_file_still_ends_its_document(tmp_path: Path):
    path = tmp_path / "x.txt.gz"
    text = "".join(f"line {i} {i**20}\n" for i in range(5000))
    path.write_bytes(gzip.compress(text.encode())[:-5000])
    chunks = read_chunks(path, max_document_bytes=4096)
    assert text.startswith("".join(chunk.text for chunk in chunks))
    assert [chunk.is_end for chunk in chunks] == [i == len(chunks) - 1 for i in range(len(chunks))]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["\tone\r\ntwo\n\n \nthree\n"]),
        ("line", ["\tone", "two", "three"]),
        ("paragraph", ["\tone\r\ntwo", "three"]),
    ],
)
def test_document_units_of_a_text_file(tmp_path: Path, documents: str, expected: list[str]):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf\tone\r\ntwo\n\n \nthree\n")
    assert read(tmp_path / "x.txt", document_unit=documents) == (expected, [])


def test_text_that_is_not_utf8_is_reported_by_line(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\nna\xefve\nfine\n")
    assert read(path) == ([], [f"{path}:2: not UTF-8 (invalid continuation byte)"])
    assert read(path, document_unit="line") == (
        ["fine", "fine"],
        [f"{path}:2: not UTF-8 (invalid continuation byte)"],
    )
    assert read(path, document_unit="paragraph")[1] == [
        f"{path}:1: not UTF-8 (invalid continuation byte)"
    ]
