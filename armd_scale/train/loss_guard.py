"""Batches that would spoil the weights: left out at first, then a way back to sound weights.

A batch is bad when its loss or gradient is not finite, or when its loss is a spike. Its step counts
as taken, its samples as consumed, and weights and moments stay as they were. When `patience`
batches in a row are bad, the weights are to blame: they go back to a checkpoint from before the
first of them, while the run's counters go on, so that whatever led there is not met again (as PaLM
was trained, arXiv 2204.02311, section 5.1). All of this is a function of `TrainState`: a run that
is stopped and resumed decides as one that is not.
"""

import dataclasses
import statistics

from armd_scale.config.schema import LossGuardConfig
from armd_scale.errors import TrainingError
from armd_scale.train.state import TrainState


class RollbackRequest(Exception):  # noqa: N818 - a turn of events, not an error
    """The weights must go back to a checkpoint.

    Attributes:
        state: where the run stands, with the bad batches behind it.
        objection: to the last of them.
    """

    def __init__(self, state: TrainState, objection: str) -> None:
        super().__init__(objection)
        self.state, self.objection = state, objection

    @property
    def last_good_step(self) -> int:
        """Steps done before the first of the bad batches."""
        return self.state.step - self.state.consecutive_bad_steps


def find_spike(state: TrainState, loss: float, guard: LossGuardConfig) -> str | None:
    """Why a finite loss must not be learnt from; None where it may."""
    if guard.spike_factor == 0 or len(state.recent_losses) < guard.window_steps:
        return None
    usual = statistics.median(state.recent_losses)
    if loss <= guard.spike_factor * usual:
        return None
    return f"a loss of {loss:.4f} where {usual:.4f} is usual"


def record_step_outcome(
    state: TrainState, loss: float, objection: str | None, guard: LossGuardConfig
) -> TrainState:
    """The state after a step, with what came of its batch.

    Raises:
        RollBack: as many batches in a row were bad as the guard has patience for.
    """
    if objection is None:
        losses = (*state.recent_losses, loss)[-guard.window_steps :] if guard.spike_factor else ()
        return dataclasses.replace(state, bad_in_a_row=0, losses=losses)
    state = dataclasses.replace(
        state, left_out=state.skipped_steps + 1, bad_in_a_row=state.consecutive_bad_steps + 1
    )
    if state.consecutive_bad_steps >= guard.max_consecutive_bad_steps:
        raise RollbackRequest(state, objection)
    return state


def state_after_rollback(
    back: RollbackRequest, checkpoint: TrainState | None, guard: LossGuardConfig
) -> TrainState:
    """Where the run stands with the weights of a checkpoint.

    Raises:
        TrainingError: there is no checkpoint, or it has gone back too often.
    """
    state = back.state
    if checkpoint is None or state.rollbacks >= guard.max_rollbacks:
        way_back = "no checkpoint to go back to"
        if checkpoint is not None:
            way_back = f"gone back {state.rollbacks} times already"
        raise TrainingError(
            f"the loss and its gradient must be finite and steady, got {back.objection} at step "
            f"{state.step}, the last of {state.consecutive_bad_steps} bad steps in a row, with {way_back}: "
            "lower optim.lr or lengthen optim.warmup_steps, then start again to resume from the "
            "newest checkpoint"
        )
    return dataclasses.replace(
        state,
        left_out=state.step - checkpoint.updates,
        bad_in_a_row=0,
        rollbacks=state.rollbacks + 1,
        losses=checkpoint.recent_losses,
    )
