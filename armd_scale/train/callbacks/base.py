"""The protocol of callbacks."""

from typing import Protocol, runtime_checkable

from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult


@runtime_checkable
class Callback(Protocol):
    """Called by the training loop on all ranks, so that it may use collectives."""

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Called after every step but one that requests a rollback.

        Args:
            state: the state after the step.
            result: what the step reports.
        """
        ...

    def on_train_end(self, state: TrainState) -> None:
        """Called once when the loop ends without an error, also when a signal stopped it."""
        ...

    def close(self) -> None:
        """Release everything; called once, also after an error. Must not use collectives."""
        ...


def is_due(step: int, every_steps: int) -> bool:
    """Whether something that runs every `every_steps` steps (0: never) runs after this step."""
    return every_steps > 0 and step % every_steps == 0
