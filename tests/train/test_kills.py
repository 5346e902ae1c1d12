"""Runs with background saves that are killed at random moments end like an undisturbed one."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.checkpoint.store import list_checkpoints, verify
from armd_scale.config.schema import Recipe
from tests.support.cli import (
    TRAIN,
    Command,
    contents,
    launch,
    metrics,
    tiny_recipe,
    write_recipe,
    write_text,
)

pytestmark = pytest.mark.slow(minutes=1)

NUM_KILLS = int(os.environ.get("KILLS", "2"))
"""Kills of each run; a run of 20 takes five minutes."""
STEPS_PER_KILL = 25


def start(recipe: Recipe, size: int) -> list[Command]:
    home = Path(recipe.run.folder).parent
    return launch(TRAIN, write_recipe(recipe, home / "recipe.yaml"), size=size, folder=home)


def checkpoints_of(recipe: Recipe) -> list[Path]:
    return list_checkpoints(Path(recipe.run.folder) / "checkpoints")


def weights_of(recipe: Recipe) -> dict[str, bytes]:
    folder = open_checkpoint(recipe.run.folder, with_optimizer=True).folder
    return {name: data for name, data in contents(folder).items() if name.endswith(".safetensors")}


@pytest.fixture
def recipe_in(tmp_path: Path) -> Callable[[str], Recipe]:
    text = write_text(tmp_path / "text")

    def make(name: str) -> Recipe:
        (tmp_path / name).mkdir()
        return tiny_recipe(
            tmp_path / name, text, model__kv_heads=2, optim__zero_stage=1, data__workers=1,
            train__micro_batch=1, train__steps=STEPS_PER_KILL * (NUM_KILLS + 1),
            checkpoint__every_steps=3, checkpoint__asynchronous=True,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_that_is_killed_again_and_again(
    recipe_in: Callable[[str], Recipe], size: int
) -> None:
    whole, killed = recipe_in("whole"), recipe_in("killed")
    for rank in start(whole, size):
        done = rank.finish(seconds=600)
        assert done.status == 0, done.errors
    moments = random.Random(size)
    num_kills = 0
    while True:
        ranks = start(killed, size)
        before = checkpoints_of(killed)
        if num_kills < NUM_KILLS:
            time.sleep(moments.uniform(0.3, 6))  # into the start, a step or a save
            with suppress(ProcessLookupError):  # it has finished
                os.kill(moments.choice(ranks).pid, signal.SIGKILL)
            num_kills += 1
        results = [rank.finish(seconds=600) for rank in ranks]
        assert not any("Traceback" in done.errors for done in results), results
        for folder in checkpoints_of(killed):
            verify(folder)
        assert before == [] or checkpoints_of(killed)[-1].name >= before[-1].name
        if all(done.status == 0 for done in results):
            break
    assert metrics(killed) == metrics(whole)
    assert weights_of(killed) == weights_of(whole)
