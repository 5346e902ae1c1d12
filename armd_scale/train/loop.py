"""The loop: verbs only."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

from armd_scale.config.derived import accumulation_steps
from armd_scale.data.batch import ArmdBatch
from armd_scale.fault.stop_signal import StopRequest
from armd_scale.optim.lr_schedule import learning_rate_at
from armd_scale.train.build import TrainerComponents
from armd_scale.train.callbacks.base import Callback
from armd_scale.train.loss_guard import find_spike, record_step_outcome
from armd_scale.train.state import TrainState
from armd_scale.train.step import train_step


def train_loop(
    parts: TrainerComponents,
    batches: Iterator[ArmdBatch],
    state: TrainState,
    *,
    callbacks: Sequence[Callback],
    stop: StopRequest,
) -> int | None:
    """Takes steps until the run is done or somebody asks it to stop.

    Args:
        parts: what the job is made of.
        batches: this rank's micro-batches, from `state.consumed_samples` on.
        state: where the run stands.
        periodic: what to do after steps.
        stop: the signals that end the loop early.

    Returns:
        The signal that ended it, or None.

    Raises:
        RollBack: the weights are bad. Nothing is saved then: weights that give no finite loss must
            not take the place of those that did.
    """
    recipe, guard, begin = parts.recipe, parts.recipe.train.loss_guard, parts.watchdog.set_phase
    count = accumulation_steps(recipe.train, parts.groups.dp.size())
    stopped_by = None
    while state.step < recipe.train.steps and stopped_by is None:
        started = time.perf_counter()
        begin("waiting for data", state.step)
        micro_batches = [next(batches).to(parts.device) for _ in range(count)]
        lr = learning_rate_at(recipe.optim, recipe.train, state.step)
        result = train_step(
            parts.engine,
            parts.stages,
            micro_batches,
            learning_rate=lr,
            groups=parts.groups,
            started=started,
            check_loss=partial(find_spike, state, guard=guard),
            watchdog=parts.watchdog,
            parent=parts.parent,
        )
        state = state.advance(samples=recipe.train.global_batch, tokens=result.tokens)
        state = record_step_outcome(state, result.loss, result.skip_reason, guard)
        begin("at what is due after a step")
        for task in callbacks:
            task.on_step_end(state, result)
        begin("asking who wants to stop")
        stopped_by = stop.any_rank(parts.device)
    for task in callbacks:
        task.on_train_end(state)
    return stopped_by
