"""Saves that may fail: a disk that is full for an hour does not end a run of weeks."""

import time
from typing import Protocol, runtime_checkable

from armd_scale.errors import CheckpointError
from armd_scale.fault.watchdog import Watchdog
from armd_scale.log import get_logger
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult

RETRY_DELAYS_SECONDS = (1.0, 3.0)
MAX_CONSECUTIVE_FAILURES = 3


@runtime_checkable
class Saves(Protocol):
    """What saves: a periodic task that can also be asked to."""

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Saves when it is due."""
        ...

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint."""
        ...

    def save(self, state: TrainState) -> None:
        """Begins a save."""
        ...

    def advance(self, *, wait: bool) -> None:
        """Ends it."""
        ...

    def on_train_end(self, state: TrainState) -> None:
        """Saves at the end."""
        ...


class RetryingCheckpointer:
    """Saves, and where that fails tries again: at once, then at the next interval.

    Training goes on meanwhile from the state in memory. `FAILURES_IN_A_ROW` intervals that all
    fail end the run. What a bad batch left behind is never saved: the weights may be to blame.

    Args:
        saves: raises CheckpointError on all processes alike, its state as before the save.
        watchdog: is told that saving begins.
    """

    def __init__(self, saves: Saves, watchdog: Watchdog) -> None:
        self._saves, self._watchdog = saves, watchdog
        self._failures, self._saved_step = 0, saves.saved_step

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Saves when it is due."""
        if result.skip_reason is not None:
            return
        self._watchdog.set_phase("saving", state.step)
        try:
            self._saves.on_step_end(state, result)
        except CheckpointError as error:
            self._try_again(state, error)
        if self._saves.saved_step != self._saved_step:
            self._failures, self._saved_step = 0, self._saves.saved_step

    def on_train_end(self, state: TrainState) -> None:
        """Saves at the end; a save that fails then is an error."""
        if state.consecutive_bad_steps == 0:
            self._watchdog.set_phase("saving", state.step)
            self._saves.on_train_end(state)

    def _try_again(self, state: TrainState, error: CheckpointError) -> None:
        for seconds in RETRY_DELAYS_SECONDS:
            get_logger(__name__).warning("%s; trying again in %g s", error, seconds)
            time.sleep(seconds)
            try:
                self._saves.save(state)
                self._saves.advance(wait=True)
            except CheckpointError as again:
                error = again
            else:
                return
        self._failures += 1
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise error
        get_logger(__name__).warning(
            "step %d is not saved; training goes on, and the next interval saves again", state.step
        )
