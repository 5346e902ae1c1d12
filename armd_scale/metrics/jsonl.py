"""JSON-lines files that survive a full disk, and the writer of metrics.jsonl."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armd_scale.config.schema import Recipe
from armd_scale.errors import TrainingError
from armd_scale.files import atomic_write_bytes, is_special_file
from armd_scale.log import get_logger

_LONGEST_LINE_BYTES = 1 << 20


class JsonlFile:
    """A file of one JSON object per line, appended to and flushed line by line.

    A full disk does not end training: lines are kept in memory until they can be written. A last
    line that a killed process cut short is removed at opening, and a file that was removed or
    renamed by others is begun anew; both are logged.

    Args:
        path: the file; created if it does not exist.

    Raises:
        TrainingError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            _repair_last_line(path)
            self._open()
        except OSError as error:
            raise _write_error(path, error) from error
        self._pending = b""

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line, after the lines that are still pending."""
        had_backlog = bool(self._pending)
        self._pending += json.dumps(values).encode() + b"\n"
        try:
            self._reopen_if_replaced()
            # A write to an almost full disk may take only a part of the bytes, so the rest stays
            # pending: no line is ever written twice or torn.
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if not had_backlog:
                get_logger(__name__).warning(
                    "cannot write %s (%s); buffering its lines until it is writable",
                    self._path,
                    error.strerror,
                )

    def close(self) -> None:
        """Close the file. Lines that could not be written are lost."""
        self._file.close()

    def _open(self) -> None:
        # Unbuffered: a line is in the kernel when `write` returns, so that a killed process loses
        # at most the line that it was writing.
        self._file = self._path.open("ab", buffering=0)
        self._opened = os.fstat(self._file.fileno())

    def _reopen_if_replaced(self) -> None:
        """Open the file again if its name does not lead to it any more.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            # A stat is cheap beside a step; a lost hour of metrics is not.
            if os.path.samestat(self._opened, self._path.stat()):
                return
        except FileNotFoundError:
            pass
        replaced = self._file
        self._open()
        replaced.close()
        get_logger(__name__).warning(
            "%s was removed or replaced while the run was writing it; continuing in a new file",
            self._path,
        )


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
    """Remove lines of steps after `last_step`, and set aside those that are no metrics.

    Raises:
        OSError: the file cannot be read or written.
        TrainingError: the same, of the file that takes its place.
    """
    if not path.exists() or is_special_file(path):
        return
    _repair_last_line(path)
    kept, unreadable = [], []
    for line in path.read_bytes().splitlines(keepends=True):
        step = _step_of_line(line)
        if step is None:
            unreadable.append(line)
        # All lines are looked at: that of a background save comes after lines of later steps.
        elif step <= last_step:
            kept.append(line.rstrip(b"\r\n") + b"\n")
    # Empty lines alone are not worth a file and a warning.
    if any(line.strip() for line in unreadable):
        aside = path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as file:
            file.writelines(unreadable)
        get_logger(__name__).warning(
            "moved %d lines of %s that are no metrics of a run to %s", len(unreadable), path, aside
        )
    atomic_write_bytes(path, b"".join(kept), error_class=TrainingError)


def _step_of_line(line: bytes) -> int | None:
    """The step of a line of metrics; None if it is not one."""
    values = _parse_object(line)
    step = None if values is None else values.get("step")
    return step if type(step) is int else None


def _parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None if there is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # no JSON or no UTF-8; nested too deeply
        return None
    return values if isinstance(values, dict) else None


def _repair_last_line(path: Path) -> None:
    """End the file at the end of a line, so that the next line does not continue a torn one.

    Raises:
        OSError: the file cannot be read or written.
    """
    if not path.exists() or is_special_file(path):
        return
    with path.open("r+b") as file:
        # From the end: the metrics of a run of weeks are long, and only the last line matters.
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - _LONGEST_LINE_BYTES))
        tail = file.read()
        if not tail or tail.endswith(b"\n"):
            return
        last_line = tail[tail.rfind(b"\n") + 1 :]
        if _parse_object(last_line) is not None:  # only its line end is missing
            file.write(b"\n")
            return
        file.truncate(start + len(tail) - len(last_line))
    get_logger(__name__).warning(
        "removed the last line of %s, which a killed process had cut short", path
    )


def _write_error(path: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"{path} must be writable ({error.strerror}): fix the permissions of its folder or choose "
        "another run.folder"
    )
