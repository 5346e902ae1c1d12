"""Worker processes."""

from pathlib import Path

import pytest

from armd_scale.data.preprocess.pipeline import preprocess
from tests.support.corpus import SPLIT, MakeOptions, result_files


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_nothing(options: MakeOptions, tmp_path: Path, workers: int):
    preprocess(options("one/out", split=SPLIT))
    preprocess(options("many/out", split=SPLIT, workers=workers))
    assert result_files(tmp_path / "many") == result_files(tmp_path / "one")
