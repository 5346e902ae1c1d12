"""Skipped steps and rollbacks: the decisions, and whole runs on data with bad samples."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.resolve import resolve
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
from tests.support.cli import TRAIN, VOCAB, run, tiny_recipe, train, write_recipe
from tests.support.shards import write_pair

pytestmark = pytest.mark.slow

GUARD = LossGuardConfig(spike_factor=2.0, window_steps=3, max_consecutive_bad_steps=2)
POISON = VOCAB - 1
BATCH = 4


def after(state: TrainState, *losses: float | str) -> TrainState:
    """The state after steps with these losses, or reasons to skip."""
    for loss in losses:
        state = state.advance(samples=BATCH, tokens=16)
        reason = loss if isinstance(loss, str) else None
        state = record_step_outcome(state, 1.0 if reason else float(loss), reason, GUARD)
    return state


def test_a_spike_is_measured_against_the_recent_median() -> None:
    few = after(TrainState(), 1.0, 9.0)
    assert find_spike(few, 100.0, GUARD) is None
    full = after(few, 1.5)
    assert find_spike(full, 3.0, GUARD) is None
    assert find_spike(full, 3.1, GUARD) == "loss 3.1000 is a spike (recent median 1.5000)"
    assert find_spike(after(full, 4.0, 4.0), 7.0, GUARD) is None  # the window has moved
    assert find_spike(full, 100.0, dataclasses.replace(GUARD, spike_factor=0.0)) is None


def test_bad_steps_are_counted_and_a_good_one_resets_the_row() -> None:
    state = after(TrainState(), 1.0, "bad", 1.0, "bad")
    assert (state.step, state.updates) == (4, 2)
    assert (state.skipped_steps, state.consecutive_bad_steps) == (2, 1)
    assert state.consumed_samples == 4 * BATCH
    with pytest.raises(RollbackRequest, match="worse") as caught:
        after(state, "worse")
    assert caught.value.last_good_step == 3


def test_a_rollback_keeps_the_counters() -> None:
    checkpoint = after(TrainState(), 1.0, "bad", 1.0)
    bad = dataclasses.replace(
        checkpoint, step=9, consumed_samples=36, skipped_steps=4, consecutive_bad_steps=2
    )
    request = RollbackRequest(bad, "x")
    state = state_after_rollback(request, checkpoint, GUARD)
    assert (state.step, state.consumed_samples, state.updates) == (9, 36, checkpoint.updates)
    assert (state.consecutive_bad_steps, state.rollbacks) == (0, 1)
    assert state.recent_losses == checkpoint.recent_losses
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state
    too_often = RollbackRequest(dataclasses.replace(bad, rollbacks=2), "x")
    for failing, target, reason in (
        (request, None, "there is no checkpoint to roll back to"),
        (too_often, checkpoint, "the run has already rolled back 2 times"),
    ):
        with pytest.raises(TrainingError, match=rf"\(got: x at step 9, .* and {reason}: lower"):
            state_after_rollback(failing, target, GUARD)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Documents in which each token determines the next; one in ten contains the token POISON."""
    documents = []
    for index in range(400):
        tokens = [index % POISON]
        for _ in range(16):
            tokens.append((5 * tokens[-1] + 3) % POISON)
        if index % 10 == 7:
            tokens[5] = POISON
        documents.append(tokens)
    return write_pair(tmp_path_factory.mktemp("text") / "pair", documents)


@pytest.fixture
def poisoned(text: str, tmp_path: Path, groups: ProcessGroupCollection) -> Callable[..., Recipe]:
    """Make runs from weights in which the embedding of POISON is NaN: so are losses with it."""
    (tmp_path / "parent").mkdir()
    recipe = tiny_recipe(tmp_path / "parent", text, train__steps=1, optim__warmup_steps=0,
                         model__tie_embeddings=False, model__max_anchor_gap=8)  # fmt: skip
    train(recipe, tmp_path / "parent")
    parent = open_checkpoint(recipe.run.folder)
    network = load_network(parent, groups=groups)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "embedding" in name and parameter.shape[0] >= VOCAB:
                parameter[POISON] = torch.nan
    start = CheckpointSave(
        tmp_path / "nan", step=1, network=network, recipe=parent.recipe, state=parent.state,
        optimizer={}, tokenizer={},
    ).wait()  # fmt: skip

    def make(name: str, **changes: object) -> Recipe:
        (tmp_path / name).mkdir()
        return tiny_recipe(
            tmp_path / name, text, model__tie_embeddings=False, model__init_from=str(start),
            train__steps=20, optim__warmup_steps=0, **changes,
        )  # fmt: skip

    return make


def bad_steps(recipe: Recipe) -> list[int]:
    """The steps, counted from 1, with POISON in a sample."""
    stream = open_samples(resolve(recipe, vocab_size=recipe.model.vocab_size))
    steps = range(recipe.train.steps)
    return [
        step + 1
        for step in steps
        if any(POISON in stream.sample(BATCH * step + k, step=step).tokens for k in range(BATCH))
    ]


def home(recipe: Recipe) -> Path:
    return Path(recipe.run.folder).parent


@pytest.mark.parametrize("stage", [0, 3])
def test_bad_steps_are_skipped_and_their_samples_named(
    poisoned: Callable[..., Recipe], stage: int
) -> None:
    recipe = poisoned(
        "run",
        optim__zero_stage=stage,
        train__loss_guard=LossGuardConfig(max_consecutive_bad_steps=20),
    )
    lines = train(recipe, home(recipe))
    bad = bad_steps(recipe)
    assert 0 < len(bad) < 12
    skipped = {line["step"]: line for line in lines if "skipped" in line}
    assert sorted(skipped) == bad
    for step, line in skipped.items():
        assert line["skipped"] == "loss is nan"
        assert line["sample_range"] == [BATCH * (step - 1), BATCH * step - 1]
    good = [line for line in lines if "loss" in line]
    assert [line["step"] for line in good] == sorted({*range(1, 21)} - {*bad})
    assert good[-1]["loss"] < good[0]["loss"]
    state = open_checkpoint(recipe.run.folder).state
    assert state["skipped_steps"] == len(bad)
    first = bad[0]
    assert (
        f"step {first} skipped: loss is nan (samples {BATCH * (first - 1)}-{BATCH * first - 1})"
        in (Path(recipe.run.folder) / "log.txt").read_text()
    )


def test_skipped_steps_survive_a_restart(poisoned: Callable[..., Recipe]) -> None:
    whole, cut = (
        poisoned(name, train__loss_guard=LossGuardConfig(max_consecutive_bad_steps=20))
        for name in ("whole", "cut")
    )
    lines = train(whole, home(whole))
    train(cut, home(cut), f"train.steps={bad_steps(whole)[0] + 1}")
    assert train(cut, home(cut)) == lines


def test_bad_steps_in_a_row_roll_back_to_a_checkpoint(poisoned: Callable[..., Recipe]) -> None:
    changes = {"train__loss_guard": LossGuardConfig(max_consecutive_bad_steps=1, max_rollbacks=20)}
    recipe = poisoned("run", checkpoint__every_steps=2, **changes)
    lines: list[dict[str, Any]] = train(recipe, home(recipe))
    assert lines[-1]["step"] == 20
    bad = [step for step in bad_steps(recipe) if step > 2]
    log = (Path(recipe.run.folder) / "log.txt").read_text()
    for step in bad:
        assert f"step {step}: loss is nan; rolling back to the weights of step" in log
    state = open_checkpoint(recipe.run.folder).state
    assert state["rollbacks"] == len(bad)
    assert state["skipped_steps"] >= len(bad)
    again = poisoned("again", checkpoint__every_steps=2, **changes)
    train(again, home(again), f"train.steps={bad[0] + 1}")
    assert train(again, home(again)) == lines


def test_rollbacks_are_limited(poisoned: Callable[..., Recipe]) -> None:
    guard = LossGuardConfig(max_consecutive_bad_steps=1, max_rollbacks=0)
    recipe = poisoned("run", train__loss_guard=guard, checkpoint__every_steps=2)
    done = run(TRAIN, write_recipe(recipe, home(recipe) / "recipe.yaml"), folder=home(recipe))
    assert "got: loss is nan at step" in done.sentence
    assert "already rolled back 0 times: lower optim.lr" in done.sentence


def test_a_step_with_a_spike_is_skipped(tmp_path: Path) -> None:
    documents = []
    for index in range(600):
        factor = 11 if index % 40 == 39 else 5  # a few documents follow another rule
        tokens = [index % POISON]
        for _ in range(16):
            tokens.append((factor * tokens[-1] + 3 * (factor == 5)) % POISON)
        documents.append(tokens)
    text = write_pair(tmp_path / "pair", documents)
    guard = LossGuardConfig(spike_factor=1.8, window_steps=16)
    recipe = tiny_recipe(
        tmp_path, text, train__steps=150, train__micro_batch=1, train__global_batch=1,
        order=LeftToRight(), train__loss_guard=guard,
        optim__lr=3e-2, checkpoint__every_steps=0,
    )  # fmt: skip
    lines = train(recipe, tmp_path)
    spikes = [line for line in lines if "skipped" in line]
    assert spikes
    stream = open_samples(resolve(recipe, vocab_size=recipe.model.vocab_size))
    for line in spikes:
        tokens = stream.sample(line["sample_range"][0], step=line["step"] - 1).tokens
        assert (tokens[1:] != (5 * tokens[:-1] + 3) % POISON).sum() > 4
        assert "is a spike" in line["skipped"]
