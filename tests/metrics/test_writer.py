"""metrics.jsonl: one object a line, whole after a kill, without steps that are repeated."""

import json
from pathlib import Path

import pytest

from armd_scale.config.schema import LogConfig, WandbConfig
from armd_scale.errors import TrainingError
from armd_scale.metrics.writer import JsonLines, open_writers
from tests.support.recipes import SMALL, bend


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_line_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path, last_step=0)
    writer.write({"step": 1, "loss": 0.1 + 0.2})
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.1 + 0.2}  # no digit is lost
    writer.write({"step": 2})
    assert path.read_text().count("\n") == 2
    writer.close()


def test_a_resumed_run_drops_what_it_repeats_and_what_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s} for s in (1, 2, 3)] + [{"step": 3, "eval_order": "l2r"}, {"step": 4}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    writer = JsonLines(path, last_step=3)
    assert steps_in(path) == [1, 2, 3, 3]
    writer.write({"step": 4})
    assert steps_in(path) == [1, 2, 3, 3, 4]
    writer.close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_starts_anew_drops_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    JsonLines(path, last_step=0).close()
    assert path.read_text() == ""


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        JsonLines(tmp_path / "none" / "metrics.jsonl", last_step=0)
    assert str(tmp_path / "none" / "metrics.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


def recipe_with(mode: str, folder: Path):
    log = LogConfig(every_steps=1, wandb=WandbConfig(mode=mode))
    return bend(SMALL, {"log": log, "run.folder": str(folder)})


def test_without_wandb_there_is_the_file_alone(tmp_path: Path) -> None:
    (writer,) = open_writers(recipe_with("disabled", tmp_path), last_step=0)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_wandb_keeps_its_files_in_the_run_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    writers = open_writers(recipe_with("offline", tmp_path), last_step=0)
    for writer in writers:
        writer.write({"step": 1, "loss": 2.0, "order": "l2r"})
        writer.write({"step": 1, "eval_order": "strided-ar:2", "perplexity": 9.0})
        writer.close()
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 1]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
