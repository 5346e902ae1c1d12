"""Skip steps whose loss or gradient is non-finite or spikes; roll back after several in a row.

A skipped step counts as done and its samples as consumed, but weights and moments stay as they
were. When `train.loss_guard.max_consecutive_bad_steps` steps in a row are bad, the weights
themselves are taken to be bad: they go back to a checkpoint from before the first of these steps,
while the counters go on, so that the run continues with other samples (as PaLM was trained, arXiv
2204.02311, section 5.1).

All decisions are functions of `TrainState` and the loss, which is equal on all ranks: no
communication is needed, and a resumed run decides as an uninterrupted one.
"""

import dataclasses
import statistics

from armd_scale.config.schema import LossGuardConfig
from armd_scale.errors import TrainingError
from armd_scale.train.state import TrainState


class RollbackRequest(Exception):  # noqa: N818 - control flow, not an error
    """Raised by a step when the weights must go back to an earlier checkpoint.

    Attributes:
        state: the state after the last bad step.
        skip_reason: why that step was skipped.
    """

    def __init__(self, state: TrainState, skip_reason: str) -> None:
        super().__init__(skip_reason)
        self.state, self.skip_reason = state, skip_reason

    @property
    def last_good_step(self) -> int:
        """Steps done before the first of the consecutive bad ones."""
        return self.state.step - self.state.consecutive_bad_steps


def find_spike(state: TrainState, loss: float, guard: LossGuardConfig) -> str | None:
    """Return a reason to skip a step with this finite loss; None if it is not a spike.

    A spike is above `spike_factor` times the median of the last `window_steps` good losses. There
    is none before the window is full. The median, unlike the mean, does not follow single outliers.
    """
    if guard.spike_factor == 0 or len(state.recent_losses) < guard.window_steps:
        return None
    median = statistics.median(state.recent_losses)
    if loss <= guard.spike_factor * median:
        return None
    return f"loss {loss:.4f} is a spike (recent median {median:.4f})"


def record_step_outcome(
    state: TrainState, loss: float, skip_reason: str | None, guard: LossGuardConfig
) -> TrainState:
    """Record the outcome of a step: update the recent losses, or count a skipped step.

    Args:
        state: the state after the step, its counters advanced.
        loss: of the step.
        skip_reason: why its update was skipped; None if it was applied.
        guard: the recipe's `train.loss_guard`.

    Raises:
        RollbackRequest: `max_consecutive_bad_steps` steps in a row were bad.
    """
    if skip_reason is None:
        # Without spike detection nothing is remembered, so that checkpoints stay small.
        losses = (*state.recent_losses, loss)[-guard.window_steps :] if guard.spike_factor else ()
        return dataclasses.replace(state, consecutive_bad_steps=0, recent_losses=losses)
    state = dataclasses.replace(
        state,
        skipped_steps=state.skipped_steps + 1,
        consecutive_bad_steps=state.consecutive_bad_steps + 1,
    )
    if state.consecutive_bad_steps >= guard.max_consecutive_bad_steps:
        raise RollbackRequest(state, skip_reason)
    return state


def state_after_rollback(
    request: RollbackRequest, checkpoint_state: TrainState | None, guard: LossGuardConfig
) -> TrainState:
    """Return the state with the counters of the request and the weights of a checkpoint.

    Args:
        request: raised by `record_step_outcome`.
        checkpoint_state: state of the checkpoint to go back to; None if there is none.
        guard: the recipe's `train.loss_guard`.

    Raises:
        TrainingError: there is no checkpoint, or the run has rolled back `max_rollbacks` times.
    """
    state = request.state
    if checkpoint_state is None or state.rollbacks >= guard.max_rollbacks:
        limit = "there is no checkpoint to roll back to"
        if checkpoint_state is not None:
            limit = f"the run has already rolled back {state.rollbacks} times"
        raise TrainingError(
            f"loss and gradient must stay finite and steady (got: {request.skip_reason} at step "
            f"{state.step}, the last of {state.consecutive_bad_steps} bad steps in a row), and "
            f"{limit}: lower optim.lr or lengthen optim.warmup_steps, then run again to resume "
            "from the newest checkpoint"
        )
    return dataclasses.replace(
        state,
        # All steps since the checkpoint are undone, good ones too: of the `step` steps done, only
        # the checkpoint's updates remain in the weights. `TrainState.updates` must stay equal to
        # AdamW's own step counter, which its bias correction depends on.
        skipped_steps=state.step - checkpoint_state.updates,
        consecutive_bad_steps=0,
        rollbacks=state.rollbacks + 1,
        recent_losses=checkpoint_state.recent_losses,
    )
