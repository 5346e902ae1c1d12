import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.preprocess.chunking import split_stream
from armd_scale.data.preprocess.documents import ReaderOptions, SkippedDocument
from armd_scale.data.preprocess.hub import read_hub
from armd_scale.data.preprocess.readers import read_unit
from armd_scale.data.preprocess.sources import WorkUnit, find_sources, kind_of, make_work_units
from armd_scale.errors import CorpusError

TEXTS = ["one", "two\nlines", "drei — ünïcode 🙂", "", "last"]


def read(*inputs: object, **reading: object) -> tuple[list[str], list[str]]:
    """Texts of the documents, and names of what was none."""
    sources, _ = find_sources([str(name) for name in inputs])
    rules = ReaderOptions(**reading)  # type: ignore[arg-type]
    units = make_work_units(
        sources, text_documents=rules.document_unit, document_bytes=rules.max_document_bytes
    )
    items = [item for unit in units for item in read_unit(unit, rules)]
    return (
        [item.text for item in items if not isinstance(item, SkippedDocument)],
        [str(item) for item in items if isinstance(item, SkippedDocument)],
    )


def json_lines(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def write_everywhere(folder: Path) -> dict[str, Path]:
    """The same documents in every format."""
    lines = json_lines(TEXTS)
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    frames = zstandard.compress(lines[:20]) + zstandard.compress(lines[20:])
    (folder / "a.jsonl.zst").write_bytes(frames)
    table = pa.table({"other": [1] * len(TEXTS), "text": TEXTS})
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved", num_shards=2)
    return {path.name: path for path in folder.iterdir()}


def test_every_format_gives_the_same_documents(tmp_path: Path):
    files = write_everywhere(tmp_path)
    assert len(files) == 6
    for name, path in files.items():
        assert read(path) == (TEXTS, []), name


def test_hub_rows_come_through_the_datasets_library(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_bytes(json_lines(TEXTS))
    items = list(read_hub(str(tmp_path), WorkUnit("hub", (str(tmp_path),), 0), ReaderOptions()))
    assert [item.text for item in items if not isinstance(item, SkippedDocument)] == TEXTS
    (bad, *_) = read_hub(str(tmp_path), WorkUnit("hub", ("x",), 0), ReaderOptions(text_key="body"))
    assert str(bad) == f"{tmp_path} shard 0 row 0: no key 'body' (its keys: text)"


def test_folders_are_walked_in_order_and_what_they_leave_out_is_counted(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.py").write_text("b1")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "c.md").write_text("c")
    (tmp_path / "b" / "1.pyc").write_bytes(b"\xff")
    (tmp_path / "LICENSE").write_text("left out")
    _, ignored = find_sources([str(tmp_path)])
    assert ignored == {"(none)": 1, ".pyc": 1}
    assert read(tmp_path)[0] == ["a", "c", "b1"]
    assert read(tmp_path / "**" / "*.py")[0] == ["b1"]
    assert read(tmp_path / "LICENSE")[0] == ["left out"]


def test_kinds_follow_the_extension_below_the_compression():
    assert kind_of("a/b.JSONL.gz") == "lines"
    assert [kind_of(f"x{end}") for end in (".parquet", ".arrow", ".txt.zst", "")] == [
        "parquet",
        "arrow",
        "text",
        "text",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON (column 10: Unterminated string starting at)"),
        (b'{"body": "x", "id": 1}', "no key 'text' (its keys: 'body', 'id')"),
        (b'{"text": 5}', "'text' holds a number, not a string"),
        (b'{"text": null}', "'text' holds null, not a string"),
        (b'{"text": ["x"]}', "'text' holds an array, not a string"),
        (b'["x"]', "not a JSON object with the key 'text'"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 11 of the line)"),
        (b'{"text": "\\ud800"}', "holds half of a surrogate pair, which is no character"),
        (b"[" * 100_000, "not JSON that can be read (maximum recursion depth exceeded"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_bad_lines_are_named_and_passed_over(tmp_path: Path, line: bytes, reason: str, suffix: str):
    path = tmp_path / f"bad{suffix}"
    content = b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}'
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    texts, bad = read(path)
    assert texts == ["before", "after"]
    assert len(bad) == 1
    assert bad[0].startswith(f"{path}:3: {reason}")


def test_lines_keep_their_number_in_the_middle_of_a_large_file(tmp_path: Path):
    path = tmp_path / "large.jsonl"
    good = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    path.write_bytes(good * 2500 + b"broken\n" + good * 10)
    sources, _ = find_sources([str(path)])
    units = make_work_units(sources, text_documents="file", document_bytes=1 << 20)
    assert len(units) == 3
    texts, bad = read(path)
    assert len(texts) == 2510
    assert bad == [f"{path}:2501: not JSON (column 1: Expecting value)"]


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=20),
    step=st.integers(1, 50),
)
def test_byte_ranges_hold_each_line_once(
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


@given(
    text=st.text(alphabet="ab \né漢🙂", max_size=400),
    limit=st.integers(8, 60),
    first=st.integers(0, 10),
)
def test_cuts_depend_on_nearby_bytes_only(text: str, limit: int, first: int):
    data = text.encode()
    whole = [piece for _, piece, _ in split_stream(io.BytesIO(data), limit)]
    assert b"".join(whole) == data
    assert all(len(piece) <= 2 * limit and piece.decode() is not None for piece in whole)
    start = first * limit
    if 0 < start < len(data):
        before = [p for _, p, _ in split_stream(io.BytesIO(data), limit, stop=start)]
        after = [p for _, p, _ in split_stream(io.BytesIO(data), limit, start=start)]
        assert [p for p in before + after if p] == [p for p in whole if p]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_long_files_are_cut_at_line_ends(tmp_path: Path, suffix: str):
    text = "".join(f"line {i} with some words\n" for i in range(1000))
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"long.txt{suffix}"
    path.write_bytes(pack(text.encode()))
    texts, bad = read(path, document_bytes=4096)
    assert "".join(texts) == text
    assert not bad
    assert len(texts) == 7
    assert all(piece.endswith("\n") for piece in texts)


def test_long_json_documents_are_cut_too(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(json_lines(["é" * 5000, "short"]))
    texts, _ = read(tmp_path / "x.jsonl", document_bytes=4096)
    assert "".join(texts) == "é" * 5000 + "short"
    assert [len(text) for text in texts] == [2048, 2048, 904, 5]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["\tone\r\ntwo\n\n \nthree\n"]),
        ("line", ["\tone", "two", "three"]),
        ("paragraph", ["\tone\r\ntwo", "three"]),
    ],
)
def test_documents_of_a_text_file(tmp_path: Path, documents: str, expected: list[str]):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf\tone\r\ntwo\n\n \nthree\n")
    assert read(tmp_path / "x.txt", text_documents=documents) == (expected, [])


def test_undecodable_text_is_named_by_line(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\nna\xefve\nfine\n")
    assert read(path) == ([], [f"{path}:2: not UTF-8 (invalid continuation byte)"])
    assert read(path, text_documents="line") == (
        ["fine", "fine"],
        [f"{path}:2: not UTF-8 (invalid continuation byte)"],
    )
    assert read(path, text_documents="paragraph")[1] == [
        f"{path}:1: not UTF-8 (invalid continuation byte)"
    ]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_truncated_archives_are_noticed(tmp_path: Path, suffix: str, pack: object):
    lines = json_lines([f"{i} " + hex(i**90) for i in range(5000)])
    packed = pack(lines)  # type: ignore[operator]
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    texts, bad = read(path)
    assert len(texts) < 5000
    assert len(bad) == 1
    assert bad[0].startswith(f"{path}:")
    assert "cannot be read on from here" in bad[0]


def test_damaged_and_foreign_tables_are_named(tmp_path: Path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "bad.arrow").write_bytes(b"nothing")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "key.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "type.parquet")
    pq.write_table(pa.table({"text": ["x", None, "y"]}), tmp_path / "null.parquet")
    for name in ("bad.parquet", "bad.arrow"):
        texts, (bad,) = read(tmp_path / name)
        assert not texts
        assert bad.startswith(f"{tmp_path / name}: cannot be read (")
    assert "no column 'text', its columns: 'body'" in read(tmp_path / "key.parquet")[1][0]
    assert "the column 'text' holds int64, not strings" in read(tmp_path / "type.parquet")[1][0]
    path = tmp_path / "null.parquet"
    assert read(path) == (["x", "y"], [f"{path} row 1: 'text' holds null, not a string"])


def test_an_undecodable_row_is_one_row(tmp_path: Path):
    binary = pa.array([b"good", b"\xff", b"good"], pa.binary())
    table = pa.table({"text": binary.view(pa.string())})
    pq.write_table(table, tmp_path / "x.parquet")
    texts, bad = read(tmp_path / "x.parquet")
    assert texts == ["good", "good"]
    assert bad == [f"{tmp_path / 'x.parquet'} row 1: not UTF-8 (invalid start byte)"]


def test_empty_documents_need_an_end_token(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    assert read(tmp_path / "empty.txt") == ([""], [])
    texts, (bad,) = read(tmp_path / "empty.txt", keep_empty=False)
    assert not texts
    assert "is empty, and no end token is added" in bad


def test_units_group_small_files_and_cover_every_byte(tmp_path: Path):
    for i in range(50):
        (tmp_path / f"{i:02}.txt").write_text("x" * 100_000)
    (tmp_path / "big.txt").write_text("line\n" * 1_000_000)
    sources, _ = find_sources([str(tmp_path)])
    units = make_work_units(sources, text_documents="file", document_bytes=1 << 20)
    assert sum(unit.num_bytes for unit in units) == 10_000_000
    assert len(units) == 10
    assert str(units[0]).endswith("00.txt and the 9 files after it")
    assert str(units[-1]).endswith("big.txt bytes 4194304-5242880")


def test_many_tiny_files_make_few_units(tmp_path: Path):
    path = tmp_path / "empty.txt"
    path.write_text("")
    sources = find_sources([str(path)])[0] * 10_000
    units = make_work_units(sources, text_documents="file", document_bytes=1 << 20)
    assert [len(unit.paths) for unit in units] == [4096, 4096, 1808]


def test_inputs_that_name_nothing(tmp_path: Path):
    for name in ("nope.jsonl", "nope/deeper/*.txt", "armd_scale/no_such_folder", "./nope"):
        with pytest.raises(CorpusError, match=r"does not exist|holds none of them"):
            find_sources([name])
    with pytest.raises(CorpusError, match="must name text, JSON lines, parquet or arrow"):
        find_sources([str(tmp_path)])
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"state.json must list the .arrow files"):
        find_sources([str(tmp_path)])
