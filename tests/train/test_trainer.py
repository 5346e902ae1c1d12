"""The trainer as a library: fit, stop, resume, save, evaluate, and when callbacks are called."""

import dataclasses
import json
import logging
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.config.schema import Recipe
from armd_scale.errors import TrainingError
from armd_scale.fault.stop_signal import StopRequest
from armd_scale.train.changes import describe_data
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult
from armd_scale.train.trainer import Trainer
from tests.support.cli import ROOT, metrics, tiny_recipe, write_recipe, write_text
from tests.support.recipes import bend

pytestmark = pytest.mark.slow

BATCH, TOKENS = 4, 64  # samples and targets of a step


@dataclass
class Recorder:
    """A callback that records what it is called with, and may stop the run or break the weights."""

    stop_at: int = 0
    break_at: int = 0
    trainer: Trainer | None = None
    steps: list[tuple[TrainState, StepResult]] = field(default_factory=list)
    ends: list[TrainState] = field(default_factory=list)

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        self.steps.append((state, result))
        if state.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        if state.step == self.break_at:
            assert self.trainer is not None
            self.break_at = 0
            break_weights(self.trainer)

    def on_train_end(self, state: TrainState) -> None:
        self.ends.append(state)

    def close(self) -> None:
        pass


def break_weights(trainer: Trainer) -> None:
    """Set all weights to NaN, as a bad update would."""
    with torch.no_grad():
        for group in trainer._checkpointer._engine._engine.optimizer.bit16_groups_flat:
            group.fill_(torch.nan)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Six steps of two micro-batches of two samples; no checkpoint before the end."""
    changes = {"train__steps": 6, "checkpoint__every_steps": 100, "optim__zero_stage": 1}
    return tiny_recipe(tmp_path, write_text(tmp_path / "text"), **changes)


def state_after(steps: int) -> TrainState:
    return TrainState(step=steps, consumed_samples=BATCH * steps, consumed_tokens=TOKENS * steps)


def events(recipe: Recipe) -> list[tuple]:
    lines = (Path(recipe.run.folder) / "events.jsonl").read_text().splitlines()
    return [(line["event"], line["step"]) for line in map(json.loads, lines)]


def test_every_callback_is_called_after_every_step(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    recorder = Recorder()
    with Trainer.from_recipe(recipe, groups=groups, callbacks=[recorder]) as trainer:
        assert trainer.fit() is None
    assert [state for state, _ in recorder.steps] == [state_after(step) for step in range(1, 7)]
    assert recorder.ends == [state_after(6)]
    assert all(math.isfinite(result.loss) for _, result in recorder.steps)
    assert all(result.tokens == TOKENS for _, result in recorder.steps)
    assert events(recipe) == [("start", 0), ("save", 6), ("end", 6)]


def test_a_signal_lets_the_step_finish_and_the_next_run_resumes(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    stopped, resumed = Recorder(stop_at=2), Recorder()
    with Trainer.from_recipe(recipe, groups=groups, callbacks=[stopped]) as trainer:
        assert trainer.fit() == signal.SIGUSR1
        assert trainer.state == state_after(2)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert stopped.ends == [state_after(2)]
    with Trainer.from_recipe(recipe, groups=groups, callbacks=[resumed]) as trainer:
        assert trainer.state == state_after(2)
        assert trainer.fit() is None
    assert [state.step for state, _ in resumed.steps] == [3, 4, 5, 6]
    assert events(recipe) == [
        ("start", 0), ("save", 2), ("stop", 2),
        ("start", 0), ("resume", 2), ("save", 6), ("end", 6),
    ]  # fmt: skip


def test_steps_taken_one_by_one_are_those_of_fit(
    recipe: Recipe, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    with Trainer.from_recipe(recipe, groups=groups) as trainer:
        trainer.fit()
    by_hand = bend(recipe, {"run.folder": str(tmp_path / "by_hand")})
    with Trainer.from_recipe(by_hand, groups=groups) as trainer:
        results = [trainer.train_step() for _ in range(6)]
        assert trainer.state == state_after(6)
    assert [result.loss for result in results] == [line["loss"] for line in metrics(recipe)]
    assert metrics(by_hand) == []  # callbacks are not called


def test_save_and_evaluate_whenever_asked(recipe: Recipe, groups: ProcessGroupCollection) -> None:
    recipe = bend(
        recipe,
        {
            "eval.every_steps": 2,
            "eval.orders": ("l2r", "strided-ar:2"),
            "checkpoint.asynchronous": True,
        },
    )
    with Trainer.from_recipe(recipe, groups=groups) as trainer:
        trainer.train_step()
        folder = trainer.save()
        results = trainer.evaluate()
    assert open_checkpoint(folder, with_optimizer=True).state == state_after(1).to_json() | {
        "recent_losses": [],
        "data": describe_data(trainer.recipe),
    }
    assert [result.order for result in results] == ["l2r", "strided-ar:2"]
    lines = [line for line in metrics(recipe) if "eval_order" in line]
    assert [line["nll_nats_per_token"] for line in lines] == [
        result.nll_nats_per_token for result in results
    ]


def test_a_recipe_without_evaluation_cannot_be_evaluated(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    with (
        Trainer.from_recipe(recipe, groups=groups) as trainer,
        pytest.raises(TrainingError, match=r"requires data\.valid and eval\.every_steps > 0"),
    ):
        trainer.evaluate()


def test_bad_weights_without_a_checkpoint_end_the_run(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    recorder = Recorder()
    trainer = Trainer.from_recipe(recipe, groups=groups, callbacks=[recorder])
    break_weights(trainer)
    with pytest.raises(TrainingError, match=r"got: loss is nan at step 3, .* no checkpoint"):
        trainer.fit()
    # The third step requests a rollback, after which no callback is called.
    assert [result.skip_reason for _, result in recorder.steps] == ["loss is nan"] * 2
    assert recorder.ends == []
    assert events(recipe) == [
        ("start", 0), ("skipped_step", 1), ("skipped_step", 2), ("error", 3),
    ]  # fmt: skip


def test_bad_weights_go_back_to_a_checkpoint_and_callbacks_stay(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    """Steps 4 to 6 are bad; step 7 continues with the weights and the optimizer of step 2."""
    recorder = Recorder(break_at=3)
    changes = {"train.steps": 8, "checkpoint.every_steps": 2, "optim.ema_decay": 0.5}
    recipe = bend(recipe, changes)
    with Trainer.from_recipe(recipe, groups=groups, callbacks=[recorder]) as trainer:
        recorder.trainer = trainer
        assert trainer.fit() is None
        expected = dataclasses.replace(state_after(8), skipped_steps=4, rollbacks=1)
        assert trainer.state == expected
    assert [state.step for state, _ in recorder.steps] == [1, 2, 3, 4, 5, 7, 8]
    assert math.isfinite(recorder.steps[-1][1].loss)
    assert events(recipe) == [
        ("start", 0), ("save", 2), ("skipped_step", 4), ("skipped_step", 5),
        ("rollback", 6), ("resume", 2), ("save", 8), ("end", 8),
    ]  # fmt: skip


def test_a_closed_trainer_leaves_no_log_handler(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    logger = logging.getLogger("armd_scale")
    before = list(logger.handlers)
    trainer = Trainer.from_recipe(recipe, groups=groups)
    assert len(logger.handlers) == len(before) + 1
    trainer.close()
    assert logger.handlers == before


def test_one_line_trains_in_a_fresh_process(recipe: Recipe, tmp_path: Path) -> None:
    """Nothing has to be imported or set before, and nothing to be closed after."""
    file = write_recipe(recipe, tmp_path / "recipe.yaml")
    program = (
        "from armd_scale.config.load import load_recipe\n"
        "from armd_scale.train.trainer import Trainer\n"
        "for steps in (5, 7):\n"
        f"    recipe = load_recipe({str(file)!r}, [f'train.steps={{steps}}'])\n"
        "    print(Trainer.from_recipe(recipe).fit())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None", "None"]
    assert events(recipe)[-3:] == [("resume", 5), ("save", 7), ("end", 7)]


def test_a_second_ctrl_c_waits_for_a_save(
    recipe: Recipe, groups: ProcessGroupCollection, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = bend(recipe, {"checkpoint.asynchronous": True})
    with Trainer.from_recipe(recipe, groups=groups) as trainer, StopRequest():
        trainer.train_step()
        trainer._checkpointer.save(trainer.state)  # in the background
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert "a checkpoint is being saved" in capfd.readouterr().err
        trainer._checkpointer.poll(wait=True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert open_checkpoint(recipe.run.folder, with_optimizer=True).state["step"] == 1
