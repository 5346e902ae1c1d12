"""Reading a run folder: real ones, and damaged ones, which are described instead of failing."""

import json
import os
from pathlib import Path

import pytest

from armd_scale.errors import TrainingError
from armd_scale.report.page import render
from armd_scale.report.run_folder import Run, differences, read_run
from armd_scale.report.write import write_report


@pytest.mark.slow
def test_a_resumed_run_is_read_completely(run_folders: list[Path]) -> None:
    run = read_run(run_folders[0])
    assert run.name == "slow"
    assert [line["step"] for line in run.steps] == list(range(1, 9))
    assert [(event.kind, event.step) for event in run.events] == [
        ("start", 0), ("evaluation", 4), ("save", 4), ("evaluation", 6), ("save", 6), ("end", 6),
        ("start", 0), ("resume", 6), ("evaluation", 8), ("save", 8), ("end", 8),
    ]  # fmt: skip
    (resume,) = run.events_of("resume")
    assert resume.values["checkpoint"].endswith("checkpoints/step_00000006")
    assert run.times == sorted(run.times)
    assert run.samples == {"samples.txt": "once <upon> a time"}
    assert run.recipe["data.seq_length"] == 16
    assert run.warnings == []


BROKEN = {
    "nothing logged": ("", "metrics.jsonl has no training step yet."),
    "a cut line": (
        '{"step": 1, "loss": 2.0}\n{"step": 2, "lo', "or have no number where one must be: 1."
    ),
    "not a number": ('{"step": 1, "loss": NaN, "grad_norm": Infinity}\n', "There is no log.txt"),
    "no objects": ('3\n[1]\n{"loss": 1}\n', "or have no number where one must be: 3."),
    "only an evaluation": ('{"step": 1, "eval_order": "l2r"}\n', "no training step yet."),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metrics_are_a_warning_on_the_page(name: str, tmp_path: Path) -> None:
    text, warning = BROKEN[name]
    (tmp_path / "metrics.jsonl").write_text(text)
    page = render([read_run(tmp_path)])
    assert warning in page
    data = page.split('id="data">')[1].split("</script>")[0]
    json.loads(data, parse_constant=pytest.fail)


def test_broken_events_are_a_warning(tmp_path: Path) -> None:
    lines = [
        '{"time": "2026-01-01T00:00:00.000", "event": "end", "step": 3}',
        '{"time": "yesterday", "event": "end", "step": 3}',
        '{"event": "end", "step": 3}',
        '{"time": "2026-01-',
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    run = read_run(tmp_path)
    assert [event.kind for event in run.events] == ["end"]
    assert "Lines of events.jsonl that are not events: 2." in run.warnings
    assert any("Lines of events.jsonl that are not JSON obj" in text for text in run.warnings)


def test_an_unreadable_recipe_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("run: {name: x, wrong: 1}")
    assert any("The recipe cannot be read" in warning for warning in read_run(tmp_path).warnings)


def test_a_folder_without_a_run_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nowhere is not a folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="has none of them"):
        read_run(tmp_path)


def test_differences_are_of_keys_that_any_recipe_has() -> None:
    runs = [
        Run(folder=Path("x"), name="x", recipe=recipe) for recipe in ({"a": 1, "b": 2}, {"a": 1})
    ]
    assert differences(runs) == {"b": [2, None]}


STEP = {"step": 1, "loss": 2.0, "step_seconds": 0.5, "tokens_per_second": 9.0, "order": "l2r"}
EVENT = {"time": "2026-01-01T00:00:00.000", "event": "save", "step": 1, "wait_seconds": 1.0}
HOSTILE = ("true", "1" + "0" * 200, "9" * 5000, "[]", "{}", '"x"', '"\\ud800"', "[" * 9999)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl"])
def test_lines_that_cannot_be_used_are_counted(tmp_path: Path, file: str, text: str) -> None:
    line = STEP if file == "metrics.jsonl" else EVENT
    lines = [json.dumps(line)]
    keys = [key for key in line if key != "order"]  # any text is one
    for key in keys:
        lines.append(json.dumps({**line, key: "?"}).replace('"?"', text))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(STEP) + "\n")
    (tmp_path / file).write_text("\n".join(lines) + "\n")
    run = read_run(tmp_path)
    write_report([tmp_path])
    assert run.warnings
    assert any(f"Lines of {file}" in warning for warning in run.warnings)
    assert run.steps[0] == STEP


def test_times_that_do_not_exist_are_counted(tmp_path: Path) -> None:
    times = ["2026-02-30 00:00:00,000", "9999-99-99 99:99:99,999", "2026-01-01 00:00:00,000"]
    (tmp_path / "log.txt").write_text("".join(f"{time} a line\n" for time in times))
    run = read_run(tmp_path)
    assert len(run.times) == 1
    assert "Lines of log.txt with a time that does not exist: 2." in run.warnings


def test_events_in_another_time_zone_are_counted(tmp_path: Path) -> None:
    zoned = {**EVENT, "time": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "events.jsonl").write_text(f"{json.dumps(EVENT)}\n{json.dumps(zoned)}\n")
    run = read_run(tmp_path)
    assert len(run.events) == 1
    assert "Lines of events.jsonl that are not events: 1." in run.warnings


def test_texts_that_are_no_files_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(STEP) + "\n")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "a.txt").write_text("x" * 100_000)
    run = read_run(tmp_path)
    assert list(run.samples) == ["a.txt"]
    assert sum("cannot be read" in warning for warning in run.warnings) == 3
