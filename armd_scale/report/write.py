"""Write the report: run folders in, one HTML file out."""

from collections.abc import Sequence
from pathlib import Path

from armd_scale.errors import TrainingError
from armd_scale.files import atomic_write_text
from armd_scale.report.page import render
from armd_scale.report.run_folder import Run, read_run


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report page and return its path.

    Args:
        folders: run folders.
        output: file to write; None: report.html in the first folder.

    Raises:
        TrainingError: a folder is not a run folder, or the page cannot be written.
    """
    page = render(_disambiguate_names([read_run(folder) for folder in folders]))
    path = output or folders[0] / "report.html"
    # Names of folders need not be valid text.
    page = page.encode(errors="backslashreplace").decode()
    atomic_write_text(path, page, error_class=TrainingError)
    return path


def _disambiguate_names(runs: list[Run]) -> list[Run]:
    """Append the folder to the names of runs that share one."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({run.folder})"
    return runs
