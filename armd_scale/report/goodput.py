"""Where a run's wall-clock time went: steps that count, saves, evaluations, standing still."""

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from armd_scale.report.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Seconds from the first line of the log to the last."""

    steps: float
    """Steps that the run kept; those that a resume repeated are counted once."""
    checkpoints: float
    evaluations: float
    downtime: float
    """From a stop, or a death, to the next start."""
    other: float
    """Start-up, repeated steps, and whatever the files do not tell apart."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.steps + self.checkpoints + self.evaluations + self.downtime + self.other


def goodput_of(run: Run) -> Goodput | None:
    """The split of a run's time; None where the log or the metrics tell none."""
    if len(run.times) < 2 or not run.steps:
        return None
    total = (run.times[-1] - run.times[0]).total_seconds()
    if total <= 0:
        return None
    lines = [*run.steps, *run.evaluations, *run.other_lines]
    steps = min(total, _step_seconds(run))
    checkpoints = _sum(lines, "checkpoint_seconds")
    evaluations = _sum(lines, "evaluation_seconds")
    stopped = sum((start - last).total_seconds() for last, start in _standstills(run))
    rest = max(0.0, total - steps - checkpoints - evaluations - stopped)
    return Goodput(
        steps=steps,
        checkpoints=checkpoints,
        evaluations=evaluations,
        downtime=float(stopped),
        other=rest,
    )


def _step_seconds(run: Run) -> float:
    """A line's `step_seconds` is the mean over the steps since the line before."""
    seconds, before = 0.0, 0
    for line in run.steps:
        seconds += (line.get("step_seconds") or 0.0) * (line["step"] - before)
        before = line["step"]
    return seconds


def _sum(lines: list[dict], key: str) -> float:
    return float(sum(line.get(key) or 0.0 for line in lines))


def _standstills(run: Run) -> list[tuple[datetime, datetime]]:
    """The last line before each start but the first, and the start; or the resume."""
    kinds = {event.kind for event in run.events}
    mark = "start" if "start" in kinds else "resume"
    starts = {event.time for event in run.events if event.kind == mark}
    return [(last, time) for last, time in pairwise(run.times) if time in starts]
