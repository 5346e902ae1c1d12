"""The report as a command: run folders in, one HTML file out."""

from collections.abc import Sequence
from pathlib import Path

from armd_scale.errors import TrainingError
from armd_scale.files import atomic_write_text
from armd_scale.report.page import render
from armd_scale.report.run_folder import read_run


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page about the runs and returns its path.

    Args:
        folders: of the runs.
        output: where to write; None: report.html in the first folder.

    Raises:
        TrainingError: a folder is not a run's, or the page cannot be written.
    """
    page = render(_disambiguate_names([read_run(folder) for folder in folders]))
    path = output or folders[0] / "report.html"
    atomic_write_text(path, page, error_class=TrainingError)
    return path


def _disambiguate_names(runs):
    """Runs that share a name are told apart by their folders."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({run.folder})"
    return runs
