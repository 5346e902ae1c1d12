"""Finding input files."""

from pathlib import Path

import pytest

from armd_scale.data.preprocess.sources import find_sources, source_kind
from armd_scale.errors import CorpusError
from tests.support.corpus import read


def test_folders_are_walked_in_order_and_ignored_files_are_counted(tmp_path: Path):
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


def test_the_kind_follows_the_suffix_below_the_compression_suffix():
    assert source_kind("a/b.JSONL.gz") == "lines"
    assert [source_kind(f"x{end}") for end in (".parquet", ".arrow", ".txt.zst", "")] == [
        "parquet",
        "arrow",
        "text",
        "text",
    ]


def test_inputs_that_do_not_exist_are_errors(tmp_path: Path):
    for name in ("nope.jsonl", "nope/deeper/*.txt", "armd_scale/no_such_folder", "./nope"):
        with pytest.raises(CorpusError, match=r"does not exist|contains none of them"):
            find_sources([name])
    with pytest.raises(CorpusError, match="must contain text, JSON lines, Parquet or Arrow"):
        find_sources([str(tmp_path)])
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"state.json must list the .arrow files"):
        find_sources([str(tmp_path)])
