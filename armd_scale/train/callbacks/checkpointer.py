"""Checkpoints at their interval, written while training waits or in the background.

A save that fails is retried, so that a temporarily full disk does not end a run of weeks: at once
after short delays, then at the next interval, while training goes on from the state in memory.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armd_scale.checkpoint.pinned_buffers import HostBuffers
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.errors import CheckpointError
from armd_scale.fault.stop_signal import defer_interrupts
from armd_scale.log import get_logger
from armd_scale.metrics.writer import MetricsWriter
from armd_scale.optim.ema import ExponentialMovingAverage
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.train.callbacks.base import is_due
from armd_scale.train.changes import DATA_KEY
from armd_scale.train.context import TrainingContext
from armd_scale.train.model_files import ModelFiles
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult

RETRY_DELAYS_SECONDS = (1.0, 3.0)
MAX_CONSECUTIVE_FAILURES = 3
"""Intervals in a row whose save fails, retries included, before the run ends with the error."""


@dataclass
class _PendingSave:
    """A save that has started and not finished."""

    save: CheckpointSave
    step: int
    start_time: float
    """By time.perf_counter."""
    wait_seconds: float
    """How long training has waited for it so far."""


class Checkpointer:
    """Callback that saves every `checkpoint.every_steps` steps and at the end of training.

    With `checkpoint.asynchronous` training waits only while its state is copied to host memory, and
    for one small all-reduce after each step until the copy is on disk. A run that ends before that
    resumes from the checkpoint before it.

    All methods but `close` are collective, and a CheckpointError is raised by all ranks alike.

    Args:
        context: of the run.
        engine: the network with its optimizer.
        writers: receive a line for each checkpoint: the seconds that training waited for it and the
            seconds that it was written in the background.
        average: averaged weights to save.
        start_step: the step that training starts from, which needs no checkpoint.
        files: for each checkpoint, the files of the tokenizer and of the source model.
        data: fingerprints of the training data, for each checkpoint; JSON values.
    """

    def __init__(
        self,
        context: TrainingContext,
        engine: ZeroEngine,
        writers: Sequence[MetricsWriter],
        *,
        average: ExponentialMovingAverage | None,
        start_step: int,
        files: ModelFiles,
        data: Sequence[Mapping[str, Any]],
    ) -> None:
        self._context, self._engine, self._writers = context, engine, writers
        self._average, self._files, self._data = average, files, data
        self.saved_step = start_step
        """Step of the newest complete checkpoint."""
        self._pending: _PendingSave | None = None
        self._deferral = ExitStack()  # holds `defer_interrupts` while a save is pending
        self._has_warned = False
        self._num_failures = 0
        self._is_async = context.recipe.checkpoint.asynchronous
        self._buffers = HostBuffers(engine.network, context.groups, reuse=self._is_async)

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Advance the pending save; start one when it is due.

        Nothing is saved after a skipped step: the weights may be what made it bad, and `keep` would
        then remove the last good checkpoint.

        Raises:
            CheckpointError: the saves of several intervals in a row failed.
        """
        if result.skip_reason is not None:
            return
        self._context.watchdog.set_phase("checkpoint", state.step)
        try:
            # After every step: a background save starts its next phase only here.
            self.poll()
            if is_due(state.step, self._context.recipe.checkpoint.every_steps):
                self.save(state)
        except CheckpointError as error:
            self._retry(state, error)

    def on_train_end(self, state: TrainState) -> None:
        """Wait for the pending save; save the state if the last checkpoint is of an earlier step.

        Raises:
            CheckpointError: the save failed; there is no later interval to try again at.
        """
        # As in on_step_end: the weights may be bad. A resume starts from the last checkpoint.
        if state.consecutive_bad_steps > 0:
            return
        self._context.watchdog.set_phase("checkpoint", state.step)
        self.poll(wait=True)
        if self._context.recipe.checkpoint.every_steps > 0 and state.step != self.saved_step:
            self.save(state)
        self.poll(wait=True)

    def close(self) -> None:
        """Abandon a pending save. When this returns, no thread writes any more."""
        if self._pending is not None:
            self._pending.save.cancel()
            self._set_pending(None)

    def save(self, state: TrainState, *, wait: bool = False) -> Path:
        """Start the save of a state, after the pending one is complete; return its folder.

        Args:
            state: of the present weights.
            wait: until it is complete, also with `checkpoint.asynchronous`.

        Raises:
            CheckpointError: this save or the pending one failed. Nothing is pending then.
        """
        if self._pending is not None and not self._has_warned:
            self._has_warned = True
            get_logger(__name__).warning(
                "checkpoint of step %d is due while that of step %d is still being written; "
                "waiting (logged once): raise checkpoint.every_steps or use faster storage",
                state.step,
                self._pending.step,
            )
        # Two saves at a time would need a second set of host buffers.
        self.poll(wait=True)
        start = time.perf_counter()
        with defer_interrupts():
            save = self._start_save(state)
            # The constructor copies the state to host memory and plans who writes what. Training
            # has waited for that even if the rest runs in the background.
            seconds = time.perf_counter() - start
            self._set_pending(_PendingSave(save, state.step, start, seconds))
        if wait or not self._is_async:
            self.poll(wait=True)
        return save.folder

    def poll(self, *, wait: bool = False) -> None:
        """Advance the pending save as far as possible without waiting, or to its end.

        Raises:
            CheckpointError: it failed. Nothing is pending then.
        """
        pending = self._pending
        if pending is None:
            return
        start = time.perf_counter()
        try:
            if wait:
                pending.save.wait()
            is_done = pending.save.poll()
        except CheckpointError:
            # Dropped, not retried here: the state in memory has moved on, and is saved instead.
            self._set_pending(None)
            raise
        stop = time.perf_counter()
        pending.wait_seconds += stop - start
        if is_done:
            self._set_pending(None)
            self.saved_step, self._num_failures = pending.step, 0
            self._report(pending, total_seconds=stop - pending.start_time)

    def _set_pending(self, pending: _PendingSave | None) -> None:
        self._pending = pending
        self._deferral.close()
        if pending is not None:
            self._deferral.enter_context(defer_interrupts())

    def _start_save(self, state: TrainState) -> CheckpointSave:
        recipe, network = self._context.recipe, self._engine.network
        copy = self._buffers.copy_to_host
        optimizer = self._engine.export_state(copy)
        sections = {"master": optimizer.master, **optimizer.moments}
        if self._average is not None:
            average = self._average.average.items()
            sections["average"] = {name: copy("average", name, value) for name, value in average}
        # Copies from a GPU are asynchronous, and the next step overwrites what they read.
        self._buffers.synchronize()
        return CheckpointSave(
            Path(recipe.run.folder) / "checkpoints",
            step=state.step,
            network=network,
            recipe=recipe,
            state={**state.to_json(), DATA_KEY: self._data},
            # From the master weights: under ZeRO 3 the network's own parameters are shards.
            weights=optimizer.weights(network),
            optimizer=sections,
            tokenizer=self._files.tokenizer,
            source=self._files.source,
        )

    def _report(self, saved: _PendingSave, *, total_seconds: float) -> None:
        background_seconds = total_seconds - saved.wait_seconds
        folder = saved.save.folder
        get_logger(__name__).info("saved %s (training waited %.2f s)", folder, saved.wait_seconds)
        self._context.events.write(
            "save",
            saved.step,
            checkpoint=folder.name,
            wait_seconds=saved.wait_seconds,
            background_seconds=background_seconds,
        )
        for writer in self._writers:
            writer.write(
                {
                    "step": saved.step,
                    "checkpoint_seconds": saved.wait_seconds,
                    "checkpoint_background_seconds": background_seconds,
                }
            )

    def _retry(self, state: TrainState, error: CheckpointError) -> None:
        """Save the present state after each of the delays, until one save succeeds.

        Raises:
            CheckpointError: all failed, and so did those of the intervals before.
        """
        # The error is raised on all ranks alike, so all of them sleep and save again together.
        for delay in RETRY_DELAYS_SECONDS:
            self._context.events.write("save_failed", state.step, reason=str(error))
            get_logger(__name__).warning("%s; retrying in %g s", error, delay)
            time.sleep(delay)
            try:
                # Waiting, also with checkpoint.asynchronous: the outcome must be known here.
                self.save(state, wait=True)
            except CheckpointError as next_error:
                error = next_error
            else:
                return
        self._num_failures += 1
        self._context.events.write("save_failed", state.step, reason=str(error))
        if self._num_failures >= MAX_CONSECUTIVE_FAILURES:
            raise error
        get_logger(__name__).warning(
            "step %d could not be saved (%s); training continues and saves at the next interval",
            state.step,
            error,
        )
