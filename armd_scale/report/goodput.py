"""Where a run's wall-clock time went: useful steps, saves, evaluations, downtime."""

from dataclasses import dataclass
from itertools import pairwise

from armd_scale.report.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Seconds from the first sign of life of a run to the last."""

    steps: float
    """Steps that the run kept; a step that was repeated after a resume counts once."""
    checkpoints: float
    """Training waited for saves, those of repeated steps included."""
    evaluations: float
    """Evaluations, those of repeated steps included."""
    downtime: float
    """From the last sign of life before a stop or a crash to the next start."""
    other: float
    """Start-up, repeated steps, and whatever the files do not record."""

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.steps + self.checkpoints + self.evaluations + self.downtime + self.other


def goodput_of(run: Run) -> Goodput | None:
    """Split the wall-clock time of a run; None if its files have no times or no steps."""
    # A duration needs two times; metrics.jsonl has none, so events or a log must exist.
    if len(run.times) < 2 or not run.steps:
        return None
    total = (run.times[-1] - run.times[0]).total_seconds()
    if total <= 0:
        return None
    # A run that was killed, or is running, may have metrics of steps after its last log line.
    steps = min(total, _step_seconds(run))
    checkpoints = _sum_over_events(run, "save", "wait_seconds")
    evaluations = _sum_over_events(run, "evaluation", "seconds")
    downtime = _downtime_seconds(run)
    return Goodput(
        steps=steps,
        checkpoints=checkpoints,
        evaluations=evaluations,
        downtime=downtime,
        # Steps are timed by another clock than the total, so the parts may exceed it by a little.
        other=max(0.0, total - steps - checkpoints - evaluations - downtime),
    )


def _step_seconds(run: Run) -> float:
    """Sum over lines of their `step_seconds`, the mean over the steps since the line before."""
    seconds, previous_step = 0.0, 0
    for line in run.steps:
        seconds += (line.get("step_seconds") or 0.0) * (line["step"] - previous_step)
        previous_step = line["step"]
    return seconds


def _sum_over_events(run: Run, kind: str, key: str) -> float:
    return float(sum(event.values.get(key) or 0.0 for event in run.events_of(kind)))


def _downtime_seconds(run: Run) -> float:
    """Time between each start but the first and the sign of life before it."""
    # A process writes `start` before its first line in log.txt, so the time before it is downtime:
    # the job waited, Python started, and the data were opened.
    starts = {event.time for event in run.events_of("start")}
    gaps = [(time - previous) for previous, time in pairwise(run.times) if time in starts]
    return float(sum(gap.total_seconds() for gap in gaps))
