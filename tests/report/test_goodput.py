"""Where wall-clock time went: by hand, and from the files of a real run that was resumed."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from armd_scale.report.goodput import goodput_of
from armd_scale.report.run_folder import Event, Run, read_run

pytestmark = pytest.mark.slow

START = datetime(2026, 1, 1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_goodput_splits_the_time_of_a_run() -> None:
    """Killed after the log line at 100 s, started again at 160 s; steps 11 to 14 are repeated."""
    run = Run(
        folder=Path("run"),
        name="run",
        steps=[{"step": 10, "step_seconds": 5.0}, {"step": 20, "step_seconds": 6.0}],
        events=[
            Event(at(0), "start", 0),
            Event(at(60), "evaluation", 10, {"seconds": 4.0}),
            Event(at(70), "save", 10, {"wait_seconds": 2.5, "background_seconds": 9.0}),
            Event(at(160), "start", 0),
            Event(at(170), "resume", 10),
            Event(at(190), "save", 20, {"wait_seconds": 3.5, "background_seconds": 0.0}),
            Event(at(200), "end", 20),
        ],
        times=[at(0), at(60), at(70), at(100), at(160), at(170), at(190), at(200)],
    )
    goodput = goodput_of(run)
    assert goodput is not None
    assert goodput.steps == 110
    assert goodput.checkpoints == 6
    assert goodput.evaluations == 4
    assert goodput.downtime == 60
    assert goodput.other == 20
    assert goodput.total == 200


def test_without_times_or_steps_there_is_no_goodput() -> None:
    run = Run(folder=Path("run"), name="run", steps=[{"step": 1}], times=[at(0)])
    assert goodput_of(run) is None
    run.times = [at(0), at(9)]
    assert goodput_of(run) is not None
    run.steps = []
    assert goodput_of(run) is None


def test_goodput_of_a_real_run_counts_all_its_time(run_folders: list[Path]) -> None:
    run = read_run(run_folders[0])
    goodput = goodput_of(run)
    assert goodput is not None
    lines = list(map(json.loads, (run_folders[0] / "events.jsonl").read_text().splitlines()))
    evaluations = [line["seconds"] for line in lines if line["event"] == "evaluation"]
    saves = [line["wait_seconds"] for line in lines if line["event"] == "save"]
    assert len(evaluations) == 3  # after steps 4, 6 (the last of the first run) and 8
    assert goodput.evaluations == pytest.approx(sum(evaluations))
    assert goodput.checkpoints == pytest.approx(sum(saves))
    assert min(evaluations) > 0
    # The first run ended before the second started: between them lies downtime.
    ends = [datetime.fromisoformat(line["time"]) for line in lines if line["event"] == "end"]
    starts = [datetime.fromisoformat(line["time"]) for line in lines if line["event"] == "start"]
    assert goodput.downtime == pytest.approx((starts[1] - ends[0]).total_seconds(), abs=0.01)
    assert goodput.total == pytest.approx((ends[1] - starts[0]).total_seconds(), abs=0.01)
    assert goodput.other >= 0
