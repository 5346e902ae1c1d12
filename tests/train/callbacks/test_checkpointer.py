"""Saves of whole jobs: in the background as in the foreground, killed, rotten, refused a disk."""

import json
import signal
import time
from collections.abc import Callable
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
    write_recipe,
    write_text,
)
from tests.support.recipes import bend

TENSOR2 = {"parallel__tensor": 2, "optim__zero_stage": 1}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_text(tmp_path_factory.mktemp("text") / "pair")


@pytest.fixture
def recipe_in(text: str, tmp_path: Path) -> Callable[..., Recipe]:
    """Recipes of runs in folders of their own, for heads and batches that two ranks can share."""

    def make(name: str, **changes: object) -> Recipe:
        (tmp_path / name).mkdir()
        changes = {"model__kv_heads": 2, "train__micro_batch": 1, **changes}
        return tiny_recipe(tmp_path / name, text, **changes)

    return make


def checkpoints_of(recipe: Recipe) -> Path:
    return Path(recipe.run.folder) / "checkpoints"


def start(recipe: Recipe, size: int, **limits: dict[int, int]) -> list[Command]:
    home = Path(recipe.run.folder).parent
    file = write_recipe(recipe, home / "recipe.yaml")
    return launch(TRAIN, file, size=size, folder=home, **limits)


def finish(ranks: list[Command], seconds: float = 60) -> list[Finished]:
    end = time.monotonic() + seconds
    return [rank.finish(seconds=max(0.1, end - time.monotonic())) for rank in ranks]


def trained(recipe: Recipe, size: int) -> list[dict]:
    """The metrics of a job that must come to its end."""
    for done in finish(start(recipe, size)):
        assert done.status == 0, done.errors
    return metrics(recipe)


def tensors_of(recipe: Recipe, step: int) -> dict[str, bytes]:
    """A sound checkpoint's files of tensors."""
    folder = open_checkpoint(
        checkpoints_of(recipe) / f"step_{step:08d}", with_optimizer=True
    ).folder
    return {name: data for name, data in contents(folder).items() if name.endswith(".distcp")}


def lines_of_saves(recipe: Recipe) -> list[dict]:
    text = (Path(recipe.run.folder) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if "checkpoint_seconds" in line]


@pytest.mark.parametrize(
    ("size", "tensor", "zero_stage", "precision"),
    [(1, 1, 0, "fp32"), (1, 1, 1, "bf16"), (2, 1, 3, "fp32"), (4, 2, 2, "fp32")],
)
def test_a_save_in_the_background_holds_what_one_in_the_foreground_does(
    recipe_in: Callable[..., Recipe], size: int, tensor: int, zero_stage: int, precision: str
) -> None:
    changes = {
        "parallel__tensor": tensor,
        "optim__zero_stage": zero_stage,
        "optim__ema_decay": 0.9,
        "train__precision": precision,
        "checkpoint__every_steps": 3,  # and step 8, the last
    }
    waited = recipe_in("waited", **changes)
    beside = recipe_in("beside", checkpoint__asynchronous=True, **changes)
    assert trained(beside, size) == trained(waited, size)
    for step in (3, 6, 8):
        assert tensors_of(beside, step) == tensors_of(waited, step)
    for recipe in (waited, beside):
        saves = lines_of_saves(recipe)
        assert [line["step"] for line in saves] == [3, 6, 8]
        assert all(line["checkpoint_seconds"] > 0 for line in saves)
        background = [line["checkpoint_background_seconds"] for line in saves]
        assert all((seconds > 1e-3) == (recipe is beside) for seconds in background[:2])
        assert sorted(p.name for p in checkpoints_of(recipe).iterdir()) == [
            "step_00000003", "step_00000006", "step_00000008",
        ]  # fmt: skip


def test_a_save_that_is_due_waits_for_the_one_in_flight_and_says_so_once(
    recipe_in: Callable[..., Recipe],
) -> None:
    changes = {"checkpoint__every_steps": 1, "checkpoint__asynchronous": True}
    recipe = recipe_in("run", checkpoint__keep=9, **changes)
    trained(recipe, 1)
    assert [line["step"] for line in lines_of_saves(recipe)] == list(range(1, 9))
    assert len(list(checkpoints_of(recipe).glob("step_*"))) == 8
    log = (Path(recipe.run.folder) / "log.txt").read_text()
    assert log.count("and waits for it (said once)") == 1


def hold_in_a_save(ranks: list[Command], victim: int, checkpoints: Path) -> Path:
    """Stops a rank with a save under way that cannot end without it; returns the save's folder."""
    ranks[0].wait_for(lambda: any(checkpoints.glob("step_*")))
    while True:
        ranks[0].wait_for(lambda: any(checkpoints.glob(".step_*.partial")))
        ranks[victim].send(signal.SIGSTOP)
        time.sleep(0.5)  # what the others can do without it, they have done
        if partial := list(checkpoints.glob(".step_*.partial")):
            return partial[0]
        ranks[victim].send(signal.SIGCONT)


@pytest.mark.parametrize(("asynchronous", "victim"), [(True, 1), (True, 0), (False, 1)])
def test_a_rank_killed_in_a_save_costs_the_steps_since_the_one_before(
    recipe_in: Callable[..., Recipe], asynchronous: bool, victim: int
) -> None:
    changes = {**TENSOR2, "checkpoint__asynchronous": asynchronous}
    killed = recipe_in("killed", train__steps=100_000, checkpoint__every_steps=2, **changes)
    checkpoints = checkpoints_of(killed)
    ranks = start(killed, 2)
    partial = hold_in_a_save(ranks, victim, checkpoints)
    sound = sorted(path.name for path in checkpoints.glob("step_*"))
    ranks[victim].send(signal.SIGKILL)
    began = time.monotonic()
    other = ranks[1 - victim].finish(seconds=30)
    assert time.monotonic() - began < 30
    assert other.status == EXIT_PEER_LOST, other.errors
    assert f"rank {victim} (process {ranks[victim].pid} on " in other.errors
    assert ranks[victim].finish().status == -signal.SIGKILL
    assert partial.is_dir()
    assert sorted(path.name for path in checkpoints.glob("step_*")) == sound
    newest = int(sound[-1][5:])
    resumed = trained(bend(killed, {"train.steps": newest + 3}), 2)
    log = (Path(killed.run.folder) / "log.txt").read_text()
    assert f"resumed from {checkpoints / sound[-1]}" in log
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
def test_a_job_goes_on_from_the_checkpoint_before_a_rotten_one(
    recipe_in: Callable[..., Recipe], damage: Callable[[Path], None]
) -> None:
    rotten = recipe_in("rotten", checkpoint__asynchronous=True, **TENSOR2)
    trained(rotten, 2)
    file = checkpoints_of(rotten) / "step_00000008" / "optimizer" / "__1_0.distcp"
    damage(file)
    longer = bend(rotten, {"train.steps": 10})
    ranks = finish(start(longer, 2))
    assert [rank.status for rank in ranks] == [0, 0], ranks[0].errors
    for rank in ranks:
        assert str(file) in rank.errors
        assert "falling back to the previous checkpoint" in rank.errors
    log = (Path(rotten.run.folder) / "log.txt").read_text()
    assert f"resumed from {checkpoints_of(rotten) / 'step_00000004'}" in log
    whole = recipe_in("whole", train__steps=10, checkpoint__every_steps=0, **TENSOR2)
    assert metrics(rotten) == trained(whole, 2)
    open_checkpoint(file.parents[1], with_optimizer=True)  # written anew on the way


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_in_the_background_is_every_rank_s_sentence(
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
