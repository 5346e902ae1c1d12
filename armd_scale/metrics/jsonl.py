"""JSON-lines files that survive a full disk, and the writer of metrics.jsonl."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armd_scale.config.schema import Recipe
from armd_scale.errors import TrainingError
from armd_scale.log import get_logger


class JsonlFile:
    """A file of one JSON object per line, appended to and flushed line by line.

    A full disk does not end training: lines are kept in memory until they can be written.

    Args:
        path: the file; created if it does not exist.

    Raises:
        TrainingError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Unbuffered: a line is in the kernel when `write` returns, so that a killed process
            # loses at most the line that it was writing.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _write_error(path, error) from error
        self._pending = b""

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line, after the lines that are still pending."""
        had_backlog = bool(self._pending)
        self._pending += json.dumps(values).encode() + b"\n"
        try:
            # A write to an almost full disk may take only a part of the bytes, so the rest stays
            # pending: no line is ever written twice or torn.
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if not had_backlog:
                get_logger(__name__).warning(
                    "cannot write %s (%s); buffering its lines until it is writable",
                    self._file.name,
                    error.strerror,
                )

    def close(self) -> None:
        """Close the file. Lines that could not be written are lost."""
        self._file.close()


class JsonlWriter:
    """The metrics writer of metrics.jsonl.

    Args:
        path: the file.
        last_step: lines of later steps are removed first, because a resumed run repeats them.

    Raises:
        TrainingError: the file cannot be written.
    """

    def __init__(self, path: Path, *, last_step: int) -> None:
        try:
            _truncate_after_step(path, last_step)
        except OSError as error:
            raise _write_error(path, error) from error
        self._file = JsonlFile(path)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_jsonl_writer(recipe: Recipe, last_step: int) -> JsonlWriter:
    """Open metrics.jsonl in the run folder."""
    return JsonlWriter(Path(recipe.run.folder) / "metrics.jsonl", last_step=last_step)


def _truncate_after_step(path: Path, last_step: int) -> None:
    """Remove lines of steps after `last_step`, and a last line that a killed process cut short."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        # All lines are looked at: that of a background save comes after lines of later steps.
        if values["step"] <= last_step:
            lines.append(line)
    truncated = path.with_suffix(".new")
    truncated.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    truncated.replace(path)


def _write_error(path: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"{path} must be writable ({error.strerror}): fix the permissions of its folder or choose "
        "another run.folder"
    )
