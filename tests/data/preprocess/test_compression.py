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
