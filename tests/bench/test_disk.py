"""What dd does, and what is read from storage."""

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


def test_a_failure_of_dd_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"dd must be able .*of=.*no/dd.* ended with 1 .*No such"
    ):
        dd_write(tmp_path / "no" / "dd", MIB)


def test_files_that_were_forgotten_are_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "file"
    file.write_bytes(b"x" * 5000)
    assert files_in(tmp_path) == [file]
    drop_page_cache([file])
    with reading(5000) as transfer:
        assert file.read_bytes() == b"x" * 5000
    assert transfer.seconds > 0


def test_a_spread_names_the_middle_and_the_ends() -> None:
    assert summarize([3.0, 1.0, 9.0]) == {"median": 3.0, "least": 1.0, "most": 9.0, "runs": 3}
