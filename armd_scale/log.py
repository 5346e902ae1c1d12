"""Log lines and progress: a bar when a terminal watches, a line every few seconds otherwise."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `configure` decides where its lines go."""
    return logging.getLogger(name)


def configure(*, level: int = logging.INFO, prefix: str = "") -> None:
    """Sends log lines to stderr with the time and an optional prefix such as `[rank 3] `."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    root = logging.getLogger("armd_scale")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


class ProgressBar:
    """Progress over a known amount of work, as a context manager.

    Args:
        title: what is being done, in a few words.
        total: amount of work, in `unit`s.
        unit: what is counted, such as "MB" or "steps".
    """

    def __init__(self, title: str, total: int | float, *, unit: str = "items") -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0.0
        self._note = ""
        self._last_line = time.monotonic()
        self._bar = self._make_bar() if sys.stderr.isatty() else None

    def _make_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self._unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, note="")
        return self

    def advance(self, amount: int | float = 1, *, note: str = "") -> None:
        """Counts `amount` more as done; `note` is shown beside it (a loss, a rate)."""
        self._done += amount
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            get_logger(__name__).info(
                "%s %g/%g %s %s", self._title, self._done, self._total, self._unit, self._note
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
