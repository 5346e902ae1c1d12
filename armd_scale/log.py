"""Logging and progress: a progress bar on a terminal, log lines every few seconds otherwise."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_INTERVAL_SECONDS = 10.0


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; `configure` decides where its lines go."""
    return logging.getLogger(name)


def configure(*, level: int = logging.INFO, prefix: str = "") -> None:
    """Send log lines to stderr with the time and an optional prefix such as `[rank 3] `.

    Affects only the loggers of this package. Calling it again replaces the earlier settings.

    Args:
        level: lines below this level are dropped.
        prefix: text before each message.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    root = logging.getLogger("armd_scale")
    root.handlers[:] = [handler]
    root.setLevel(level)
    # A library that configures the root logger would otherwise print every line a second time.
    root.propagate = False


class ProgressBar:
    """A context manager that shows progress over a known amount of work.

    Args:
        title: short description of the work, such as "converting".
        total: amount of work, in `unit`s.
        unit: unit of `total`, such as "MB" or "steps".
    """

    def __init__(self, title: str, total: int | float, *, unit: str = "items") -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0.0
        self._note = ""
        self._last_line_time = time.monotonic()
        self._bar = _build_bar(unit) if sys.stderr.isatty() else None

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, note="")
        return self

    def advance(self, amount: int | float = 1, *, note: str = "") -> None:
        """Add `amount` to the work done, and show `note` beside it.

        Args:
            amount: work done since the last call, in `unit`s.
            note: a loss, a rate, or similar; empty: keep the last note.
        """
        self._done += amount
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note)
        elif time.monotonic() - self._last_line_time >= LINE_INTERVAL_SECONDS:
            self._last_line_time = time.monotonic()
            get_logger(__name__).info(
                "%s %g/%g %s %s", self._title, self._done, self._total, self._unit, self._note
            )

    def __exit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Also after an error: the bar hides the terminal's cursor until it is stopped.
        if self._bar is not None:
            self._bar.stop()


def _build_bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
