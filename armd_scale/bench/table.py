"""What a benchmark returns: rows of named figures, printed as Markdown and written as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from armd_scale.errors import ArmdError

Row = dict[str, str | int | float]
# Columns that hold shares of something, which two decimals would blur.
SHARES = ("ratio", "share", "mfu", "residual")


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; numbers that are no counts with two decimals, shares with three."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(name, row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def require_writable(path: Path) -> None:
    """Makes sure, before anything is measured, that the figures can be written.

    Raises:
        ArmdError: they cannot.
    """
    part = _part(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "Is a directory")
        part.touch()
        part.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_json(rows: Sequence[Row], path: Path) -> None:
    """The rows as a list of objects; the file appears whole or not at all.

    Raises:
        ArmdError: the file cannot be written.
    """
    part = _part(path)
    try:
        part.write_text(json.dumps(rows, indent=2) + "\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _unwritable(path: Path, error: OSError) -> ArmdError:
    return ArmdError(
        f"--json must name a file that can be written, and {path} cannot ({error.strerror}): make "
        "its folder first, or name another file"
    )


def _cell(name: str, value: str | int | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if name.endswith(SHARES) else f"{value:.2f}"
