"""events.jsonl: what happened to a run and when, as one JSON object per line.

Every line has `time` (local, ISO 8601, milliseconds), `event` and `step` (optimizer steps done; 0
in `start`, which is written before a checkpoint is loaded). The other keys depend on the event:

    start         processes
    resume        checkpoint
    skipped_step  reason, sample_range [first, last]
    rollback      reason, checkpoint, checkpoint_step
    save          checkpoint, wait_seconds (training waited), background_seconds (beside training)
    save_failed   reason
    evaluation    order, seconds
    stop          signal
    error         reason
    end

Unlike metrics.jsonl, which holds each step once, the file is only ever appended to: a resumed run
leaves the lines of the steps that it repeats. They are the record of the time that was lost, and
the step of a `resume` or `rollback` line says which lines before it were repeated.
"""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from armd_scale.metrics.jsonl import JsonlFile

EVENTS_FILE = "events.jsonl"
EventKind = Literal[
    "start",
    "resume",
    "skipped_step",
    "rollback",
    "save",
    "save_failed",
    "evaluation",
    "stop",
    "error",
    "end",
]


class EventLog:
    """Append events to the events.jsonl of a run.

    Args:
        folder: the run folder; None discards all events, as every rank but rank 0 does.

    Raises:
        TrainingError: the file cannot be written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else JsonlFile(folder / EVENTS_FILE)

    def write(self, event: EventKind, step: int, **values: Any) -> None:
        """Append one event, flushed."""
        if self._file is not None:
            time = datetime.now().isoformat(timespec="milliseconds")
            self._file.write({"time": time, "event": event, "step": step, **values})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
