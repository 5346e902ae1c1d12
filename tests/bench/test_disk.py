"""dd on the storage, and the share of reads that comes from storage."""

from pathlib import Path

import pytest

from armd_scale.bench.disk import (
    MIB,
    dd_read,
    dd_write,
    drop_page_cache,
    files_in,
    reading,
    summarize,
)
from armd_scale.errors import TrainingError


def test_dd_writes_whole_mebibytes_and_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "dd"
    assert dd_write(file, MIB + 1) > 0
    assert file.stat().st_size == 2 * MIB
    read = dd_read(file)
    assert read.seconds > 0
    assert 0 <= read.from_storage_share <= 2


def test_a_failure_of_dd_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"dd must succeed .*of=.*no/dd.* exited with 1: .*No such"
    ):
        dd_write(tmp_path / "no" / "dd", MIB)


def test_dropping_the_page_cache_leaves_files_unchanged(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "file"
    file.write_bytes(b"x" * 5000)
    assert files_in(tmp_path) == [file]
    drop_page_cache([file])
    with reading(5000) as transfer:
        assert file.read_bytes() == b"x" * 5000
    assert transfer.seconds > 0


def test_a_summary_has_median_and_extremes() -> None:
    assert summarize([3.0, 1.0, 9.0]) == {"median": 3.0, "min": 1.0, "max": 9.0, "repeats": 3}
