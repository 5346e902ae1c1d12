"""The loop: who is called when, and what ends it."""

import math
import os
import signal
from dataclasses import dataclass, field

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.fault.stop_signal import StopRequest
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.environment import read_environment
from armd_scale.train.build import TrainerComponents, make_schedule_chunks
from armd_scale.train.loop import train_loop
from armd_scale.train.loss_guard import RollbackRequest
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult
from tests.support.networks import LLAMA, build
from tests.support.recipes import SMALL_RESOLVED, bend
from tests.support.windows import draw_windows


@dataclass
class Witness:
    """A periodic task that remembers what it saw."""

    seen: list[tuple[TrainState, StepResult]] = field(default_factory=list)
    finished: list[TrainState] = field(default_factory=list)
    stop_at: int = 0

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        self.seen.append((state, result))
        if state.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_end(self, state: TrainState) -> None:
        self.finished.append(state)


@pytest.fixture
def parts(groups: ProcessGroupCollection) -> TrainerComponents:
    """Six steps of two micro-batches of two samples."""
    changes = {"train.steps": 6, "train.micro_batch": 2, "train.global_batch": 4}
    recipe = bend(SMALL_RESOLVED, {"model": LLAMA, "optim.warmup_steps": 2, **changes})
    network = build(LLAMA, groups)
    engine = ZeroEngine(ModelChunks([network]), recipe.optim, precision="fp32", groups=groups)
    return TrainerComponents(
        recipe, read_environment(), groups, engine.network, engine, make_schedule_chunks(engine)
    )


def run(parts: TrainerComponents, witness: Witness, state: TrainState) -> tuple[int | None, int]:
    """What the loop returns, and how many micro-batches it took."""
    batches = [draw_windows("random", (9,), seed=seed).batch() for seed in range(50)]
    left = iter(batches)
    with StopRequest() as stop:
        stopped_by = train_loop(parts, left, state, callbacks=[witness], stop=stop)
    return stopped_by, len(batches) - len(list(left))


def test_every_task_sees_every_step(parts: TrainerComponents) -> None:
    witness = Witness()
    assert run(parts, witness, TrainState()) == (None, 12)
    states = [state for state, _ in witness.seen]
    assert states == [
        TrainState(step=k, consumed_samples=4 * k, consumed_tokens=32 * k) for k in range(1, 7)
    ]
    assert witness.finished == states[-1:]
    assert all(math.isfinite(result.loss) for _, result in witness.seen)


def test_it_goes_on_from_where_the_run_stands(parts: TrainerComponents) -> None:
    witness = Witness()
    start = TrainState(step=4, consumed_samples=16, consumed_tokens=100)
    assert run(parts, witness, start) == (None, 4)
    assert witness.finished == [TrainState(step=6, consumed_samples=24, consumed_tokens=164)]


def test_a_request_to_stop_lets_the_step_finish(parts: TrainerComponents) -> None:
    witness = Witness(stop_at=2)
    assert run(parts, witness, TrainState()) == (signal.SIGUSR1, 4)
    assert [state.step for state in witness.finished] == [2]


def test_bad_weights_finish_nothing(parts: TrainerComponents) -> None:
    with torch.no_grad():
        parts.engine._engine.optimizer.bit16_groups_flat[0].fill_(torch.nan)
    witness = Witness()
    with pytest.raises(RollbackRequest, match=r"a loss of nan") as caught:
        run(parts, witness, TrainState())
    assert [result.skip_reason for _, result in witness.seen] == ["a loss of nan"] * 2
    assert witness.finished == []
    assert caught.value.last_good_step == 0
    assert caught.value.state == TrainState(
        step=3, consumed_samples=12, consumed_tokens=96, skipped_steps=3, consecutive_bad_steps=3
    )
