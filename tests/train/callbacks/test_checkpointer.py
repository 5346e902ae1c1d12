"""Saves of whole jobs: synchronous and asynchronous, killed, damaged, on a full disk."""

import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.config.schema import Recipe
from armd_scale.fault.peer_monitor import EXIT_PEER_LOST
from tests.support.cli import (
    TRAIN,
    Command,
    Finished,
    contents,
    launch,
    metrics,
    tiny_recipe,
    train,
    write_recipe,
    write_text,
)
from tests.support.recipes import bend

pytestmark = pytest.mark.slow(minutes=3)

TENSOR2 = {"parallel__tensor": 2, "optim__zero_stage": 1}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_text(tmp_path_factory.mktemp("text") / "pair")


@pytest.fixture
def recipe_in(text: str, tmp_path: Path) -> Callable[..., Recipe]:
    """Make recipes of runs, each in its own folder, whose heads and batches two ranks can split."""

    def make(name: str, **changes: object) -> Recipe:
        (tmp_path / name).mkdir()
        changes = {"model__kv_heads": 2, "train__micro_batch": 1, **changes}
        return tiny_recipe(tmp_path / name, text, **changes)

    return make


def checkpoints_of(recipe: Recipe) -> Path:
    return Path(recipe.run.folder) / "checkpoints"


def start(recipe: Recipe, size: int, file_bytes: Mapping[int, int] = {}) -> list[Command]:
    home = Path(recipe.run.folder).parent
    file = write_recipe(recipe, home / "recipe.yaml")
    return launch(TRAIN, file, size=size, folder=home, file_bytes=file_bytes)


def finish(ranks: list[Command], seconds: float = 60) -> list[Finished]:
    deadline = time.monotonic() + seconds
    return [rank.finish(seconds=max(0.1, deadline - time.monotonic())) for rank in ranks]


def trained(recipe: Recipe, size: int) -> list[dict]:
    """Run a job, which must succeed, and return its metrics."""
    for done in finish(start(recipe, size)):
        assert done.status == 0, done.errors
    return metrics(recipe)


def tensors_of(recipe: Recipe, step: int) -> dict[str, bytes]:
    """The tensor files of a valid checkpoint."""
    folder = open_checkpoint(
        checkpoints_of(recipe) / f"step_{step:08d}", with_optimizer=True
    ).folder
    return {name: data for name, data in contents(folder).items() if name.endswith(".safetensors")}


def save_lines(recipe: Recipe) -> list[dict]:
    text = (Path(recipe.run.folder) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if "checkpoint_seconds" in line]


@pytest.mark.parametrize(
    ("size", "tensor", "zero_stage", "precision"),
    [(1, 1, 0, "fp32"), (1, 1, 1, "bf16"), (2, 1, 3, "fp32"), (4, 2, 2, "fp32")],
)
def test_an_asynchronous_save_writes_what_a_synchronous_one_does(
    recipe_in: Callable[..., Recipe], size: int, tensor: int, zero_stage: int, precision: str
) -> None:
    changes = {
        "parallel__tensor": tensor,
        "optim__zero_stage": zero_stage,
        "optim__ema_decay": 0.9,
        "train__precision": precision,
        "checkpoint__every_steps": 3,  # and step 8, the last
    }
    synchronous = recipe_in("synchronous", **changes)
    asynchronous = recipe_in("asynchronous", checkpoint__asynchronous=True, **changes)
    assert trained(asynchronous, size) == trained(synchronous, size)
    for step in (3, 6, 8):
        assert tensors_of(asynchronous, step) == tensors_of(synchronous, step)
    for recipe in (synchronous, asynchronous):
        saves = save_lines(recipe)
        assert [line["step"] for line in saves] == [3, 6, 8]
        assert all(line["checkpoint_seconds"] > 0 for line in saves)
        background = [line["checkpoint_background_seconds"] for line in saves]
        assert all((seconds > 1e-3) == (recipe is asynchronous) for seconds in background[:2])
        assert sorted(p.name for p in checkpoints_of(recipe).iterdir()) == [
            "step_00000003", "step_00000006", "step_00000008",
        ]  # fmt: skip


def test_a_save_waits_for_the_pending_one_and_warns_once(
    recipe_in: Callable[..., Recipe],
) -> None:
    changes = {"checkpoint__every_steps": 1, "checkpoint__asynchronous": True}
    recipe = recipe_in("run", checkpoint__keep=9, **changes)
    trained(recipe, 1)
    assert [line["step"] for line in save_lines(recipe)] == list(range(1, 9))
    assert len(list(checkpoints_of(recipe).glob("step_*"))) == 8
    log = (Path(recipe.run.folder) / "log.txt").read_text()
    assert log.count("is still being written; waiting (logged once)") == 1


def stop_in_a_save(ranks: list[Command], victim: int, checkpoints: Path) -> Path:
    """Stop a rank in a save that cannot complete without it; return the folder of the save."""
    ranks[0].wait_for(lambda: any(checkpoints.glob("step_*")))
    while True:
        ranks[0].wait_for(lambda: any(checkpoints.glob(".step_*.partial")))
        ranks[victim].send(signal.SIGSTOP)
        time.sleep(0.5)  # the others have now done all they can without it
        if partial := list(checkpoints.glob(".step_*.partial")):
            return partial[0]
        ranks[victim].send(signal.SIGCONT)


@pytest.mark.parametrize(("asynchronous", "victim"), [(True, 1), (True, 0), (False, 1)])
def test_after_a_kill_in_a_save_the_job_resumes_from_the_save_before(
    recipe_in: Callable[..., Recipe], asynchronous: bool, victim: int
) -> None:
    changes = {**TENSOR2, "checkpoint__asynchronous": asynchronous}
    killed = recipe_in("killed", train__steps=100_000, checkpoint__every_steps=2, **changes)
    checkpoints = checkpoints_of(killed)
    ranks = start(killed, 2)
    partial = stop_in_a_save(ranks, victim, checkpoints)
    valid = sorted(path.name for path in checkpoints.glob("step_*"))
    ranks[victim].send(signal.SIGKILL)
    start_time = time.monotonic()
    other = ranks[1 - victim].finish(seconds=30)
    assert time.monotonic() - start_time < 30
    assert other.status == EXIT_PEER_LOST, other.errors
    assert f"rank {victim} (process {ranks[victim].pid} on " in other.errors
    assert ranks[victim].finish().status == -signal.SIGKILL
    assert partial.is_dir()
    assert sorted(path.name for path in checkpoints.glob("step_*")) == valid
    newest = int(valid[-1][5:])
    resumed = trained(bend(killed, {"train.steps": newest + 3}), 2)
    log = (Path(killed.run.folder) / "log.txt").read_text()
    assert f"resumed from {checkpoints / valid[-1]}" in log
    assert not list(checkpoints.glob(".*"))
    never = {**changes, "checkpoint__every_steps": 0}
    assert resumed == trained(recipe_in("whole", train__steps=newest + 3, **never), 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_job_resumes_from_the_checkpoint_before_a_damaged_one(
    recipe_in: Callable[..., Recipe], damage: Callable[[Path], None]
) -> None:
    damaged = recipe_in("damaged", checkpoint__asynchronous=True, **TENSOR2)
    trained(damaged, 2)
    file = checkpoints_of(damaged) / "step_00000008" / "optimizer" / "rank_00001.safetensors"
    damage(file)
    longer = bend(damaged, {"train.steps": 10})
    ranks = finish(start(longer, 2))
    assert [rank.status for rank in ranks] == [0, 0], ranks[0].errors
    for rank in ranks:
        assert str(file) in rank.errors
        assert "falling back to the previous checkpoint" in rank.errors
    log = (Path(damaged.run.folder) / "log.txt").read_text()
    assert f"resumed from {checkpoints_of(damaged) / 'step_00000004'}" in log
    whole = recipe_in("whole", train__steps=10, checkpoint__every_steps=0, **TENSOR2)
    assert metrics(damaged) == trained(whole, 2)
    open_checkpoint(file.parents[1], with_optimizer=True)  # it has been written again


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_is_the_same_error_on_every_rank(
    recipe_in: Callable[..., Recipe], full: int
) -> None:
    recipe = recipe_in("run", checkpoint__asynchronous=True, train__steps=5, **TENSOR2)
    lines = trained(recipe, 2)
    before = contents(checkpoints_of(recipe))
    longer = bend(recipe, {"train.steps": 100_000})
    ranks = finish(start(longer, 2, file_bytes={full: 12_000}))
    assert [rank.status for rank in ranks] == [2, 2]
    assert not any("Traceback" in rank.errors for rank in ranks)
    (sentence,) = {rank.errors.splitlines()[-1] for rank in ranks}
    assert sentence.startswith("error: ")
    assert f"cannot write checkpoints to {checkpoints_of(recipe)} (" in sentence
    assert "(File too large): free space" in sentence
    after = contents(checkpoints_of(recipe))
    assert {name: data for name, data in after.items() if name.startswith("step_")} == before
    assert [line["step"] for line in metrics(recipe)][:5] == [1, 2, 3, 4, 5]
    assert trained(bend(recipe, {"train.steps": 5}), 2) == lines


def test_saves_are_retried_until_the_folder_is_writable_again(text: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, text, train__steps=100_000, checkpoint__every_steps=40)
    checkpoints = Path(recipe.run.folder) / "checkpoints"
    log = Path(recipe.run.folder) / "log.txt"
    command = Command(TRAIN, write_recipe(recipe, tmp_path / "recipe.yaml"), folder=tmp_path)
    command.wait_for(lambda: (checkpoints / "step_00000040").is_dir())
    checkpoints.rename(tmp_path / "away")
    checkpoints.touch()
    command.wait_for(lambda: "training continues and saves at the next interval" in log.read_text())
    checkpoints.unlink()
    (tmp_path / "away").rename(checkpoints)
    num_saved = log.read_text().count("saved /")
    command.wait_for(lambda: log.read_text().count("saved /") > num_saved)
    command.send(signal.SIGTERM)
    assert command.finish().status == 128 + signal.SIGTERM
    lines = map(json.loads, (log.parent / "events.jsonl").read_text().splitlines())
    failures = [line for line in lines if line["event"] == "save_failed"]
    assert len(failures) >= 3
    assert "Not a directory" in failures[0]["reason"] or "exists" in failures[0]["reason"]
    assert "retrying in 3 s" in log.read_text()
    steps = open_checkpoint(recipe.run.folder).state["step"]
    (tmp_path / "whole").mkdir()
    whole = tiny_recipe(tmp_path / "whole", text, train__steps=steps, checkpoint__every_steps=0)
    assert metrics(recipe) == train(whole, tmp_path / "whole")
