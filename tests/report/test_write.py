"""The report command: where the page goes, and what is rejected."""

import subprocess
import sys
from pathlib import Path

import pytest

from armd_scale.errors import TrainingError
from armd_scale.report.write import write_report
from tests.support.cli import ROOT, run

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_the_tool_writes_into_the_run_folder_and_rejects_other_folders(
    run_folders: list[Path], tmp_path: Path
) -> None:
    done = run("tools/report.py", run_folders[1], folder=tmp_path)
    assert done.status == 0, done.errors
    assert done.output.strip() == str(run_folders[1] / "report.html")
    assert (run_folders[1] / "report.html").read_text().startswith("<!doctype html>")
    sentence = run("tools/report.py", tmp_path / "nowhere", folder=tmp_path).sentence
    assert "nowhere is not a folder" in sentence
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has none of them" in run("tools/report.py", empty, folder=tmp_path).sentence
    assert list(empty.iterdir()) == []


def test_an_unwritable_output_is_an_error(run_folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot write .*page\.html .*choose another path"):
        write_report(run_folders, tmp_path / "missing" / "page.html")


def test_runs_of_one_name_are_told_apart_by_folder(run_folders: list[Path], tmp_path: Path) -> None:
    text = write_report([run_folders[0]] * 2, tmp_path / "page.html").read_text()
    assert f"slow ({run_folders[0]})" in text


def test_help_shows_an_example() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "report.py", "--help"], capture_output=True, text=True
    )
    assert "runs/demo" in done.stdout
