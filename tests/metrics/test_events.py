"""events.jsonl: appended to by every run, written by rank 0 alone."""

import json
from datetime import datetime, timedelta
from pathlib import Path

from armd_scale.metrics.events import EventLog


def test_events_have_a_time_and_are_only_appended(tmp_path: Path) -> None:
    for checkpoint_step in (4, 2):  # a later start resumes from an earlier step: nothing is dropped
        events = EventLog(tmp_path)
        events.write("resume", checkpoint_step, checkpoint=f"step_{checkpoint_step}")
        events.close()
    lines = list(map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines()))
    for line in lines:
        age = datetime.now() - datetime.fromisoformat(line.pop("time"))
        assert timedelta(seconds=-1) < age < timedelta(seconds=60)
    assert lines == [
        {"event": "resume", "step": 4, "checkpoint": "step_4"},
        {"event": "resume", "step": 2, "checkpoint": "step_2"},
    ]


def test_without_a_folder_events_are_discarded(tmp_path: Path) -> None:
    events = EventLog()
    events.write("end", 3)
    events.close()
    assert list(tmp_path.iterdir()) == []
