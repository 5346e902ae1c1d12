"""Whole runs by the train command: repeated, killed, stopped, resumed, extended, changed."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import resolve
from armd_scale.config.schema import Recipe
from tests.support.cli import (
    TRAIN,
    VOCAB,
    Command,
    contents,
    run,
    tiny_recipe,
    train,
    write_recipe,
    write_text,
)
from tests.support.recipes import bend
from tests.support.shards import write_pair

pytestmark = pytest.mark.slow(minutes=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_text(tmp_path_factory.mktemp("text") / "pair")


@pytest.fixture
def recipe_in(text: str, tmp_path: Path) -> Callable[..., Recipe]:
    """Make recipes of runs, each in its own folder."""

    def make(name: str, **changes: object) -> Recipe:
        (tmp_path / name).mkdir()
        return tiny_recipe(tmp_path / name, text, **changes)

    return make


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.run.folder)


def trained(recipe: Recipe, *overrides: str, status: int = 0) -> list[dict[str, Any]]:
    return train(recipe, folder_of(recipe).parent, *overrides, status=status)


def start(recipe: Recipe) -> Command:
    home = folder_of(recipe).parent
    return Command(TRAIN, write_recipe(recipe, home / "recipe.yaml"), folder=home)


def last_step(recipe: Recipe) -> int:
    """The last step in the metrics; 0 if there are none."""
    path = folder_of(recipe) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def tensors_of(recipe: Recipe, section: str) -> dict[str, bytes]:
    """The tensor files of the newest checkpoint, without their index, whose order is arbitrary."""
    files = contents(open_checkpoint(recipe.run.folder).folder / section)
    return {name: content for name, content in files.items() if name.endswith(".safetensors")}


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def test_a_run_writes_its_files_and_is_reproducible(
    recipe_in: Callable[..., Recipe],
) -> None:
    changes = {"eval__every_steps": 4, "eval__orders": ("l2r", "strided-ar:2"), "eval__samples": 3}
    recipe = recipe_in("without_workers", **changes)
    lines = trained(recipe)
    assert trained(recipe_in("with_workers", data__workers=2, **changes)) == lines
    steps, evaluations = lines[:4] + lines[6:10], lines[4:6] + lines[10:]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert [line["tokens"] for line in steps] == [64 * step for step in range(1, 9)]
    assert [line["order"] for line in steps[:3]] == ["l2r", "l2r", "progressive:1"]
    assert [line["learning_rate"] for line in steps[:5]] == [2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2]
    assert losses(steps)[-1] < losses(steps)[0] - 0.1
    assert [(line["step"], line["eval_order"]) for line in evaluations] == [
        (4, "l2r"), (4, "strided-ar:2"), (8, "l2r"), (8, "strided-ar:2"),
    ]  # fmt: skip
    folder = folder_of(recipe)
    assert resolve(load_recipe(folder / "recipe.yaml")) == resolve(recipe)
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == [
        "step_00000004", "step_00000008",
    ]  # fmt: skip
    assert "saved" in (folder / "log.txt").read_text()


def test_the_resolved_recompute_is_in_the_log_and_the_recipe(
    recipe_in: Callable[..., Recipe],
) -> None:
    """Without a GPU there is no memory limit to fit, so nothing is recomputed."""
    recipe = recipe_in("auto", train__recompute="auto")
    trained(recipe)
    folder = folder_of(recipe)
    assert load_recipe(folder / "recipe.yaml").train.recompute == "none"
    line = "causal attention by FLASH_ATTENTION; recomputation: none"
    assert line in (folder / "log.txt").read_text()


def test_more_datasets_than_a_process_may_have_open_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for k in range(1500):
        write_pair(tmp_path / "data" / f"part_{k:04}", [[k % VOCAB] * 40])
    recipe = tiny_recipe(tmp_path, f"{tmp_path}/data/part_*", data__valid=None, data__workers=2)
    blend = [{"path": f"{tmp_path}/data/part_{k:04}", "weight": 1} for k in range(1500)]
    for name, train_data in (("pattern", recipe.data.train), ("blend", json.dumps(blend))):
        changes = (f"data.train={train_data}", f"run.folder={tmp_path / name}")
        file = write_recipe(recipe, tmp_path / "recipe.yaml")
        done = run(TRAIN, file, *changes, folder=tmp_path, open_files=1024)
        assert done.status == 0, done.errors
        assert len(list((tmp_path / name / "checkpoints").iterdir())) == 2
    recorded = load_recipe(tmp_path / "pattern" / "recipe.yaml").data.sources
    assert [len(source.prefixes) for source in recorded] == [1500]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_killed_run_resumes_exactly(recipe_in: Callable[..., Recipe], stage: int) -> None:
    changes = {
        "optim__zero_stage": stage,
        "optim__ema_decay": 0.9,
        "checkpoint__every_steps": 5,
        "checkpoint__keep": 2,
    }
    killed = recipe_in("killed", train__steps=100_000, **changes)
    command = start(killed)
    command.wait_for(lambda: last_step(killed) >= 12)
    command.send(signal.SIGKILL, to_group=True)
    assert command.finish().status == -signal.SIGKILL
    steps = last_step(killed) + 7
    resumed = trained(bend(killed, {"train.steps": steps}))
    whole = recipe_in("whole", train__steps=steps, **{**changes, "checkpoint__every_steps": steps})
    assert resumed == trained(whole)
    assert [line["step"] for line in resumed] == list(range(1, steps + 1))
    for section in ("weights", "optimizer"):
        assert tensors_of(killed, section) == tensors_of(whole, section)
    assert "resumed from" in (folder_of(killed) / "log.txt").read_text()


def test_a_run_killed_in_a_save_resumes_from_the_checkpoint_before_it(
    recipe_in: Callable[..., Recipe],
) -> None:
    killed = recipe_in("killed", train__steps=100_000, checkpoint__every_steps=3)
    checkpoints = folder_of(killed) / "checkpoints"
    command = start(killed)
    command.wait_for(lambda: (checkpoints / "step_00000003").is_dir())
    while True:  # stopped in the middle of a save, not merely near one
        command.wait_for(lambda: any(checkpoints.glob(".step_*.partial")))
        command.send(signal.SIGSTOP)
        if partial := list(checkpoints.glob(".step_*.partial")):
            break
        command.send(signal.SIGCONT)
    command.send(signal.SIGKILL, to_group=True)
    command.finish()
    assert partial[0].is_dir()
    newest = max(int(path.name[5:]) for path in checkpoints.glob("step_*"))
    resumed = trained(bend(killed, {"train.steps": newest + 4}))
    assert (
        f"resumed from {checkpoints}/step_{newest:08d}"
        in (folder_of(killed) / "log.txt").read_text()
    )
    assert not list(checkpoints.glob(".*"))
    assert resumed == trained(
        recipe_in("whole", train__steps=newest + 4, checkpoint__every_steps=0)
    )


@pytest.mark.parametrize(
    ("signum", "to_group"), [(signal.SIGTERM, True), (signal.SIGINT, False), (signal.SIGHUP, False)]
)
def test_a_stopped_run_saves_exits_and_resumes(
    recipe_in: Callable[..., Recipe], signum: signal.Signals, to_group: bool
) -> None:
    stopped = recipe_in(
        "stopped", train__steps=100_000, checkpoint__every_steps=10, data__workers=1
    )
    command = start(stopped)
    command.wait_for(lambda: last_step(stopped) >= 12)  # after a save
    command.send(signum, to_group=to_group)
    done = command.finish()
    assert done.status == 128 + signum, done.errors
    assert "Traceback" not in done.errors
    assert f"stopped by signal {int(signum)}; run the same command to resume" in done.errors
    step = last_step(stopped)
    assert open_checkpoint(stopped.run.folder).state["step"] == step
    steps = step + 5
    resumed = trained(bend(stopped, {"train.steps": steps}))
    assert resumed == trained(recipe_in("whole", train__steps=steps, checkpoint__every_steps=0))


def test_a_second_run_in_the_folder_is_refused(recipe_in: Callable[..., Recipe]) -> None:
    recipe = recipe_in("run", train__steps=100_000, checkpoint__every_steps=10)
    command = start(recipe)
    command.wait_for(lambda: last_step(recipe) >= 2)
    before = (folder_of(recipe) / "log.txt").read_text()
    second = folder_of(recipe).parent / "second"
    second.mkdir()
    done = run(TRAIN, folder_of(recipe).parent / "recipe.yaml", folder=second)
    assert f"is in use (process {command.pid} on" in done.sentence
    assert "run.folder must be used by one job at a time" not in before
    command.send(signal.SIGTERM)
    done = command.finish()
    assert done.status == 128 + signal.SIGTERM, done.errors
    assert not (folder_of(recipe) / "lock.json").exists()


def test_a_changed_run_is_refused_with_its_differences(recipe_in: Callable[..., Recipe]) -> None:
    recipe = recipe_in("run", train__steps=6)
    trained(recipe)
    before = contents(folder_of(recipe))
    home = folder_of(recipe).parent
    done = run(TRAIN, home / "recipe.yaml", "run.seed=7", "train.steps=8", folder=home)
    assert f"run.seed: {recipe.run.seed} -> 7" in done.sentence
    assert contents(folder_of(recipe)) == before
    trained(recipe, "run.seed=7", "train.steps=8", "checkpoint.allow_changes=true")
    log = (folder_of(recipe) / "log.txt").read_text()
    assert f"  run.seed     {recipe.run.seed}  7  (another curve)" in log
    assert "  train.steps  6" in log


def test_a_stopped_run_without_checkpoints_says_so(recipe_in: Callable[..., Recipe]) -> None:
    stopped = recipe_in("stopped", train__steps=100_000, checkpoint__every_steps=0)
    command = start(stopped)
    command.wait_for(lambda: last_step(stopped) >= 2)
    command.send(signal.SIGTERM)
    done = command.finish()
    assert done.status == 128 + signal.SIGTERM, done.errors
    assert "was not saved (checkpoint.every_steps=0)" in done.errors
    assert "the same command continues from step 0" in done.errors


def test_a_longer_run_repeats_the_shorter_one(recipe_in: Callable[..., Recipe]) -> None:
    never = {"checkpoint__every_steps": 0}
    short, long = (recipe_in(f"{steps}", train__steps=steps, **never) for steps in (6, 18))
    assert trained(long)[:6] == trained(short)
    assert not list((folder_of(long) / "checkpoints").iterdir())


def test_a_complete_run_is_not_written_again(recipe_in: Callable[..., Recipe]) -> None:
    recipe = recipe_in("run")
    lines = trained(recipe)
    before = {path: path.stat().st_mtime_ns for path in folder_of(recipe).rglob("step_*")}
    assert trained(recipe) == lines
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("packing", ["concat", "documents"])
def test_micro_batches_accumulate_to_the_batch(
    recipe_in: Callable[..., Recipe], packing: str
) -> None:
    changes = {"data__packing": packing, "checkpoint__every_steps": 0}
    whole = trained(recipe_in("whole", train__micro_batch=4, **changes))
    accumulated = trained(recipe_in("accumulated", train__micro_batch=1, **changes))
    for line, expected in zip(accumulated, whole, strict=True):
        assert line["tokens"] == expected["tokens"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


def test_activation_recomputation_changes_nothing(recipe_in: Callable[..., Recipe]) -> None:
    never = {"checkpoint__every_steps": 0}
    recomputed = recipe_in("recomputed", train__recompute="full", **never)
    assert trained(recomputed) == trained(recipe_in("stored", **never))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_follows_fp32_and_resumes_exactly(
    recipe_in: Callable[..., Recipe], stage: int
) -> None:
    changes = {"train__precision": "bf16", "optim__zero_stage": stage}
    whole = trained(recipe_in("whole", **changes))
    fp32 = trained(recipe_in("fp32", optim__zero_stage=stage, checkpoint__every_steps=0))
    assert losses(whole) == pytest.approx(losses(fp32), abs=0.03)
    assert losses(whole) != losses(fp32)
    cut = recipe_in("cut", **changes)
    trained(cut, "train.steps=5")
    assert trained(cut) == whole


def test_a_run_starts_from_the_weights_of_another_run(
    recipe_in: Callable[..., Recipe], groups: Any
) -> None:
    parent = recipe_in("parent", eval__every_steps=8, eval__orders=("l2r",))
    before = trained(parent)[-1]["nll_nats_per_token"]
    child = recipe_in(
        "child", model__init_from=parent.run.folder, train__steps=1, optim__lr=1e-12,
        optim__min_lr=0.0, optim__warmup_steps=0, eval__every_steps=1, eval__orders=("l2r",),
    )  # fmt: skip
    first, evaluation = trained(child)
    assert first["step"] == 1  # counters and optimizer start at zero
    assert evaluation["nll_nats_per_token"] == pytest.approx(before, abs=1e-6)
    network = load_network(open_checkpoint(parent.run.folder), groups=groups)
    for name, parameter in load_network(
        open_checkpoint(child.run.folder), groups=groups
    ).named_parameters():
        torch.testing.assert_close(parameter, network.get_parameter(name), atol=1e-9, rtol=0)


def test_averaged_weights_are_saved_and_may_start_later(recipe_in: Callable[..., Recipe]) -> None:
    recipe = recipe_in("run")
    trained(recipe, "train.steps=5")
    trained(recipe, "optim.ema_decay=0.5")
    files = contents(open_checkpoint(recipe.run.folder).folder / "optimizer")
    assert any(b"average.final_norm.weight" in content for content in files.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_diverging_run_keeps_its_checkpoints(
    recipe_in: Callable[..., Recipe], stage: int
) -> None:
    recipe = recipe_in("run", optim__zero_stage=stage, checkpoint__keep=1)
    trained(recipe)
    before = contents(folder_of(recipe) / "checkpoints")
    done = run(
        TRAIN, folder_of(recipe).parent / "recipe.yaml", "train.steps=100", "optim.lr=1e30",
        "checkpoint.allow_changes=true", folder=folder_of(recipe).parent,
    )  # fmt: skip
    assert "loss and gradient must stay finite and steady (got: " in done.sentence
    assert "already rolled back 2 times: lower optim.lr" in done.sentence
    assert contents(folder_of(recipe) / "checkpoints") == before
    steps = [line["step"] for line in trained(recipe, "train.steps=12")]
    assert steps == list(range(1, 13))
