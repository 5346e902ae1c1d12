"""Compressed files."""

import bz2
import gzip
import lzma
import random
from pathlib import Path

import pytest
import zstandard

from tests.support.corpus import json_lines, read

PACKERS = [
    (".gz", gzip.compress),
    (".zst", zstandard.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
]


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_truncated_archives_are_reported(tmp_path: Path, suffix: str, pack: object):
    # More than a block of bzip2, the largest one, in each half.
    lines = json_lines([f"{i} " + random.Random(i).randbytes(200).hex() for i in range(5000)])
    packed = pack(lines)  # type: ignore[operator]
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    texts, bad = read(path)
    assert len(texts) < 5000
    assert len(bad) == 1
    assert bad[0].startswith(f"{path}:")
    assert "cannot be read on from here" in bad[0]


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
@pytest.mark.parametrize("line", [b"", b"\n"], ids=["one line", "lines"])
def test_content_that_expands_without_end_is_reported(
    tmp_path: Path, suffix: str, pack: object, line: bytes
):
    path = tmp_path / f"x.jsonl{suffix}"
    bomb = (bytes((1 << 20) - len(line)) + line) * 80
    path.write_bytes(pack(b'{"text": "first"}\n' + bomb))  # type: ignore[operator]
    texts, bad = read(path)
    assert texts == ["first"]
    assert bad[-1].endswith(
        "cannot be read on from here (it expands to more than 200 times its size, which no text "
        "does)"
    )


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_repetitive_text_is_read(tmp_path: Path, suffix: str, pack: object):
    path = tmp_path / f"x.jsonl{suffix}"
    texts = ["the same text " * 10_000] * 100
    path.write_bytes(pack(json_lines(texts)))  # type: ignore[operator]
    assert path.stat().st_size < sum(map(len, texts)) / 200
    assert read(path) == (texts, [])


def test_a_window_of_two_gibibytes_is_reported(tmp_path: Path):
    path = tmp_path / "x.jsonl.zst"
    content = b'{"text": "x"}\n'
    # A frame by hand: the magic number, no options, the exponent 21 over 2**10 of the window, and
    # one last block that is not compressed.
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + block)
    texts, (bad,) = read(path)
    assert not texts
    assert "its window is over 128 MiB: compress it again without the option --long" in bad


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_several_streams_in_one_file_are_read(tmp_path: Path, suffix: str, pack: object):
    path = tmp_path / f"x.jsonl{suffix.upper()}"
    parts = [json_lines([f"text {i}"]) for i in range(3)]
    padding = b"\0\0\0\0" if suffix == ".xz" else b""
    path.write_bytes(padding.join(map(pack, parts)) + padding)  # type: ignore[call-overload]
    assert read(path) == ([f"text {i}" for i in range(3)], [])


@pytest.mark.parametrize(("suffix", "pack"), PACKERS[2:])
def test_damaged_data_after_a_stream_is_reported(tmp_path: Path, suffix: str, pack: object):
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(pack(json_lines(["a"])) + b"garbage")  # type: ignore[operator]
    texts, (bad,) = read(path)
    assert texts == ["a"]
    assert "cannot be read on from here (" in bad


def test_xz_data_that_needs_much_memory_is_reported(tmp_path: Path):
    path = tmp_path / "x.jsonl.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    packed = lzma.LZMACompressor(filters=filters)
    path.write_bytes(packed.compress(json_lines(["a"])) + packed.flush())
    texts, (bad,) = read(path)
    assert not texts
    assert "it needs over 128 MiB of memory: compress it again with a preset of xz" in bad
