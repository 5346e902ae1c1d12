"""Grouping and cutting files into work units."""

from pathlib import Path

from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.sources import find_sources
from armd_scale.data.preprocess.work_units import make_work_units


def test_units_group_small_files_and_cover_every_byte(tmp_path: Path):
    for i in range(50):
        (tmp_path / f"{i:02}.txt").write_text("x" * 100_000)
    (tmp_path / "big.txt").write_text("line\n" * 1_000_000)
    sources, _ = find_sources([str(tmp_path)])
    units = make_work_units(sources, ReaderOptions())
    assert sum(unit.num_bytes for unit in units) == 10_000_000
    assert len(units) == 10
    assert str(units[0]).endswith("00.txt and the 9 files after it")
    assert str(units[-1]).endswith("big.txt bytes 4194304-5242880")


def test_many_tiny_files_make_few_units(tmp_path: Path):
    path = tmp_path / "empty.txt"
    path.write_text("")
    sources = find_sources([str(path)])[0] * 10_000
    units = make_work_units(sources, ReaderOptions())
    assert [len(unit.paths) for unit in units] == [4096, 4096, 1808]
