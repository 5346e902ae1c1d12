"""The loop: verbs only."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

from armd_scale.config.derive import accumulation_steps
from armd_scale.data.batch import ArmdBatch
from armd_scale.optim.schedule import learning_rate
from armd_scale.train.guard import find_spike, take_note
from armd_scale.train.parts import Parts
from armd_scale.train.periodic import Periodic
from armd_scale.train.signals import StopRequest
from armd_scale.train.state import TrainState
from armd_scale.train.step import train_step


def train_loop(
    parts: Parts,
    batches: Iterator[ArmdBatch],
    state: TrainState,
    *,
    periodic: Sequence[Periodic],
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
    recipe, guard, begin = parts.recipe, parts.recipe.train.guard, parts.watchdog.begin
    count = accumulation_steps(recipe.train, parts.groups.dp.size())
    stopped_by = None
    while state.step < recipe.train.steps and stopped_by is None:
        started = time.perf_counter()
        begin("waiting for data", state.step)
        taken = [next(batches).to(parts.device) for _ in range(count)]
        rate = learning_rate(recipe.optim, recipe.train, state.step)
        result = train_step(
            parts.engine,
            parts.stages,
            taken,
            learning_rate=rate,
            groups=parts.groups,
            started=started,
            object_to=partial(find_spike, state, guard=guard),
            watchdog=parts.watchdog,
            parent=parts.parent,
        )
        state = state.after(samples=recipe.train.global_batch, tokens=result.tokens)
        state = take_note(state, result.loss, result.objection, guard)
        begin("at what is due after a step")
        for task in periodic:
            task.after_step(state, result)
        begin("asking who wants to stop")
        stopped_by = stop.agreed(parts.device)
    for task in periodic:
        task.finish(state)
    return stopped_by
