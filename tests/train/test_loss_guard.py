"""Batches that would spoil the weights: what is bad, and what runs on real bad data come to."""

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.schema import LossGuardConfig, Recipe
from armd_scale.errors import TrainingError
from armd_scale.order.policies import LeftToRight
from armd_scale.train.data import open_samples
from armd_scale.train.loss_guard import (
    RollbackRequest,
    find_spike,
    record_step_outcome,
    state_after_rollback,
)
from armd_scale.train.state import TrainState
from tests.support.cli import TRAIN, VOCAB, Command, metrics, run, tiny_recipe, train, write_recipe
from tests.support.shards import write_pair

GUARD = LossGuardConfig(spike_factor=2.0, window_steps=3, max_consecutive_bad_steps=2)
POISON = VOCAB - 1
BATCH = 4


def after(state: TrainState, *losses: float | str) -> TrainState:
    """The state after steps with these losses, or objections."""
    for loss in losses:
        state = state.advance(samples=BATCH, tokens=16)
        objection = loss if isinstance(loss, str) else None
        state = record_step_outcome(state, 1.0 if objection else float(loss), objection, GUARD)
    return state


def test_a_spike_stands_out_from_the_usual_loss() -> None:
    few = after(TrainState(), 1.0, 9.0)
    assert find_spike(few, 100.0, GUARD) is None
    usual = after(few, 1.5)
    assert find_spike(usual, 3.0, GUARD) is None
    assert find_spike(usual, 3.1, GUARD) == "a loss of 3.1000 where 1.5000 is usual"
    assert find_spike(after(usual, 4.0, 4.0), 7.0, GUARD) is None  # the window has moved on
    assert find_spike(usual, 100.0, dataclasses.replace(GUARD, spike_factor=0.0)) is None


def test_bad_batches_are_counted_and_good_ones_forgive() -> None:
    state = after(TrainState(), 1.0, "bad", 1.0, "bad")
    assert (state.step, state.updates, state.skipped_steps, state.consecutive_bad_steps) == (
        4,
        2,
        2,
        1,
    )
    assert state.consumed_samples == 4 * BATCH
    with pytest.raises(RollbackRequest, match="awful") as caught:
        after(state, "awful")
    assert caught.value.last_good_step == 3


def test_the_way_back_keeps_the_counters() -> None:
    checkpoint = after(TrainState(), 1.0, "bad", 1.0)
    back = RollbackRequest(
        dataclasses.replace(checkpoint, step=9, consumed_samples=36, left_out=4, bad_in_a_row=2),
        "x",
    )
    state = state_after_rollback(back, checkpoint, GUARD)
    assert (state.step, state.consumed_samples, state.updates) == (9, 36, checkpoint.updates)
    assert (state.consecutive_bad_steps, state.rollbacks, state.recent_losses) == (
        0,
        1,
        checkpoint.recent_losses,
    )
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state
    too_often = RollbackRequest(dataclasses.replace(back.state, rollbacks=2), "x")
    for request, to, why in (
        (back, None, "no checkpoint to go back to"),
        (too_often, checkpoint, "gone back 2 times already"),
    ):
        with pytest.raises(TrainingError, match=f"got x at step 9, .* with {why}"):
            state_after_rollback(request, to, GUARD)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Documents in which a token decides the next; one in ten has a token that no other has."""
    documents = []
    for number in range(400):
        tokens = [number % POISON]
        for _ in range(16):
            tokens.append((5 * tokens[-1] + 3) % POISON)
        if number % 10 == 7:
            tokens[5] = POISON
        documents.append(tokens)
    return write_pair(tmp_path_factory.mktemp("text") / "pair", documents)


@pytest.fixture
def poisoned(text: str, tmp_path: Path, groups: ProcessGroupCollection) -> Callable[..., Recipe]:
    """Runs from weights in which that token's embedding is NaN: a batch with it has no loss."""
    (tmp_path / "parent").mkdir()
    recipe = tiny_recipe(tmp_path / "parent", text, train__steps=1, optim__warmup_steps=0,
                         model__tie_embeddings=False, model__gap_rows=8)  # fmt: skip
    train(recipe, tmp_path / "parent")
    parent = open_checkpoint(recipe.run.folder)
    network = load_network(parent, groups=groups)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "embedding" in name and parameter.shape[0] >= VOCAB:
                parameter[POISON] = torch.nan
    start = CheckpointSave(
        tmp_path / "nan", step=1, network=network, recipe=parent.recipe, state=parent.state,
        optimizer={}, tokenizer=None,
    ).wait()  # fmt: skip

    def make(name: str, **changes: object) -> Recipe:
        (tmp_path / name).mkdir()
        return tiny_recipe(
            tmp_path / name, text, model__tie_embeddings=False, model__init_from=str(start),
            train__steps=20, optim__warmup_steps=0, **changes,
        )  # fmt: skip

    return make


def bad_steps(recipe: Recipe) -> list[int]:
    """Numbers of the steps, from 1, with that token among the samples."""
    stream = open_samples(recipe)
    steps = range(recipe.train.steps)
    return [
        step + 1
        for step in steps
        if any(POISON in stream.sample(BATCH * step + k, step=step).tokens for k in range(BATCH))
    ]


def home(recipe: Recipe) -> Path:
    return Path(recipe.run.folder).parent


@pytest.mark.parametrize("stage", [0, 3])
def test_bad_batches_are_left_out_and_named(poisoned: Callable[..., Recipe], stage: int) -> None:
    recipe = poisoned(
        "run", optim__zero_stage=stage, train__guard=LossGuardConfig(max_consecutive_bad_steps=20)
    )
    lines = train(recipe, home(recipe))
    bad = bad_steps(recipe)
    assert 0 < len(bad) < 12
    left_out = {line["step"]: line for line in lines if "left_out" in line}
    assert sorted(left_out) == bad
    for step, line in left_out.items():
        assert line["left_out"] == "a loss of nan"
        assert line["samples"] == [BATCH * (step - 1), BATCH * step - 1]
    good = [line for line in lines if "loss" in line]
    assert [line["step"] for line in good] == sorted({*range(1, 21)} - {*bad})
    assert good[-1]["loss"] < good[0]["loss"]
    state = open_checkpoint(recipe.run.folder).state
    assert state["left_out"] == len(bad)
    first = bad[0]
    assert (
        f"step {first} left out: a loss of nan on samples {BATCH * (first - 1)} to"
        in (Path(recipe.run.folder) / "log.txt").read_text()
    )


def test_what_was_left_out_survives_a_restart(poisoned: Callable[..., Recipe]) -> None:
    whole, cut = (
        poisoned(name, train__guard=LossGuardConfig(max_consecutive_bad_steps=20))
        for name in ("whole", "cut")
    )
    lines = train(whole, home(whole))
    train(cut, home(cut), f"train.steps={bad_steps(whole)[0] + 1}")
    assert train(cut, home(cut)) == lines


def test_bad_weights_go_back_to_a_checkpoint(poisoned: Callable[..., Recipe]) -> None:
    changes = {"train__guard": LossGuardConfig(max_consecutive_bad_steps=1, max_rollbacks=20)}
    recipe = poisoned("run", checkpoint__every_steps=2, **changes)
    lines: list[dict[str, Any]] = train(recipe, home(recipe))
    assert lines[-1]["step"] == 20
    bad = [step for step in bad_steps(recipe) if step > 2]
    log = (Path(recipe.run.folder) / "log.txt").read_text()
    for step in bad:
        assert f"step {step}: a loss of nan, so the weights go back" in log
    state = open_checkpoint(recipe.run.folder).state
    assert state["rollbacks"] == len(bad)
    assert state["left_out"] >= len(bad)
    again = poisoned("again", checkpoint__every_steps=2, **changes)
    train(again, home(again), f"train.steps={bad[0] + 1}")
    assert train(again, home(again)) == lines


def test_the_way_back_has_an_end(poisoned: Callable[..., Recipe]) -> None:
    guard = LossGuardConfig(max_consecutive_bad_steps=1, max_rollbacks=0)
    recipe = poisoned("run", train__guard=guard, checkpoint__every_steps=2)
    done = run(TRAIN, write_recipe(recipe, home(recipe) / "recipe.yaml"), folder=home(recipe))
    assert "got a loss of nan at step" in done.sentence
    assert "gone back 0 times already: lower optim.lr" in done.sentence


def test_a_spike_is_left_out(tmp_path: Path) -> None:
    documents = []
    for number in range(600):
        step = 11 if number % 40 == 39 else 5  # a grammar that the network does not know
        tokens = [number % POISON]
        for _ in range(16):
            tokens.append((step * tokens[-1] + 3 * (step == 5)) % POISON)
        documents.append(tokens)
    text = write_pair(tmp_path / "pair", documents)
    recipe = tiny_recipe(
        tmp_path, text, train__steps=150, train__micro_batch=1, train__global_batch=1,
        order=LeftToRight(), train__guard=LossGuardConfig(spike_factor=1.8, window_steps=16),
        optim__lr=3e-2, checkpoint__every_steps=0,
    )  # fmt: skip
    lines = train(recipe, tmp_path)
    spikes = [line for line in lines if "left_out" in line]
    assert spikes
    stream = open_samples(recipe)
    for line in spikes:
        tokens = stream.sample(line["samples"][0], step=line["step"] - 1).tokens
        assert (tokens[1:] != (5 * tokens[:-1] + 3) % POISON).sum() > 4
        assert "is usual" in line["left_out"]


def test_a_folder_that_cannot_be_written_for_a_while_costs_nothing(
    text: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, text, train__steps=100_000, checkpoint__every_steps=40)
    checkpoints = Path(recipe.run.folder) / "checkpoints"
    log = Path(recipe.run.folder) / "log.txt"
    command = Command(TRAIN, write_recipe(recipe, tmp_path / "recipe.yaml"), folder=tmp_path)
    command.wait_for(lambda: (checkpoints / "step_00000040").is_dir())
    checkpoints.rename(tmp_path / "away")
    checkpoints.touch()
    command.wait_for(lambda: "training goes on, and the next interval saves" in log.read_text())
    checkpoints.unlink()
    (tmp_path / "away").rename(checkpoints)
    there = len(list(checkpoints.glob("step_*")))
    command.wait_for(lambda: log.read_text().count("saved") > there + 1)
    command.send(signal.SIGTERM)
    assert command.finish().status == 128 + signal.SIGTERM
    assert "trying again in 3 s" in log.read_text()
    steps = open_checkpoint(recipe.run.folder).state["step"]
    (tmp_path / "whole").mkdir()
    whole = tiny_recipe(tmp_path / "whole", text, train__steps=steps, checkpoint__every_steps=0)
    assert metrics(recipe) == train(whole, tmp_path / "whole")
