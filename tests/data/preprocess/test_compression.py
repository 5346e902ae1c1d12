"""Compressed files."""

import gzip
from pathlib import Path

import pytest
import zstandard

from tests.support.corpus import json_lines, read


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_truncated_archives_are_reported(tmp_path: Path, suffix: str, pack: object):
    lines = json_lines([f"{i} " + hex(i**90) for i in range(5000)])
    packed = pack(lines)  # type: ignore[operator]
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    texts, bad = read(path)
    assert len(texts) < 5000
    assert len(bad) == 1
    assert bad[0].startswith(f"{path}:")
    assert "cannot be read on from here" in bad[0]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
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


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
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
