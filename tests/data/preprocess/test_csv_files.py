"""CSV and TSV files: every row is one document, or is reported."""

import bz2
import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.corpus import read

TEXTS = ["plain", "with, comma", 'with "quotes"', "two\nlines\r\nof text", "tab\there", "", "ünï"]


@pytest.mark.parametrize(("suffix", "dialect"), [(".csv", "excel"), (".tsv", "excel-tab")])
def test_quoted_values_are_read_as_they_were_written(tmp_path: Path, suffix: str, dialect: str):
    path = tmp_path / f"x{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, dialect)
        writer.writerows([("id", "body"), *enumerate(TEXTS)])
    assert read(path, text_key="body") == (TEXTS, [])
    for pack, end in ((gzip.compress, ".gz"), (bz2.compress, ".bz2")):
        packed = tmp_path / f"x{suffix}{end}"
        packed.write_bytes(pack(path.read_bytes()))
        assert read(packed, text_key="body") == (TEXTS, [])


@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_every_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text",), *((text,) for text in texts)])
    assert read(path) == (texts, [])


def test_invalid_rows_are_reported_by_line_and_skipped(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'text,id\n"one\nlong",1\nwith, comma,2\nshort\n\n\xff,3\n"a"b,4\nlast,5\n')
    assert read(path) == (
        ["one\nlong", "last"],
        [
            f"{path}:4: has 3 values, and the header 2: quote values with delimiters",
            f"{path}:5: has 1 values, and the header 2: quote values with delimiters",
            f"{path}:7: not UTF-8 (invalid start byte)",
            f"{path}:8: not CSV (',' expected after '\"')",
        ],
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a,b\n1,2\n", "no column 'text'; its columns: 'a', 'b'"),
        (b"text,text\n1,2\n", "several columns 'text'; its columns: 'text', 'text'"),
        (
            b'text\nfine\n"without an end\n',
            "the value that begins on line 3 does not end within 32",
        ),
        (
            b'text\n"' + (b"long " * 2000 + b"\n") * 3500,
            "the value that begins on line 2 does not end within",
        ),
        (b"text\n" + b"x" * (33 << 20), "a line longer than 32 MiB"),
    ],
    ids=["no column", "two columns", "no end", "too long", "too long a line"],
)
def test_files_that_cannot_be_read_on_are_reported(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    texts, (bad,) = read(path)
    assert texts == (["fine"] if b"fine" in content else [])
    assert bad.startswith(f"{path}: cannot be read ({reason}")


def test_an_empty_file_has_no_documents(tmp_path: Path):
    (tmp_path / "x.csv").write_bytes(b"")
    assert read(tmp_path / "x.csv") == ([], [])


def test_a_single_column_is_not_read_on_after_a_broken_value(tmp_path: Path):
    """The rest of the value would look like rows of its own."""
    path = tmp_path / "x.csv"
    path.write_text('text\nfirst\n"he said "no" to\nme\nand left"\nlast\n')
    texts, (bad,) = read(path)
    assert texts == ["first"]
    assert "line 3 is not CSV" in bad
    assert "double its quotes" in bad
