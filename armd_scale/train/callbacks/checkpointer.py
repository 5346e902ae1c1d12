"""Checkpoints at their interval, written while training waits or while it goes on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from armd_scale.checkpoint.pinned_buffers import HostBuffers
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.errors import CheckpointError
from armd_scale.log import get_logger
from armd_scale.metrics.writer import MetricsWriter
from armd_scale.optim.ema import ExponentialMovingAverage
from armd_scale.train.build import TrainerComponents
from armd_scale.train.callbacks.base import is_due
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult


@dataclass
class _PendingSave:
    """A save that has begun."""

    saving: CheckpointSave
    step: int
    began: float
    """By time.perf_counter."""
    blocked_seconds: float = 0.0
    """What training has waited for it."""


class Checkpointer:
    """Checkpoints at their interval, and one wherever the loop ends.

    With `checkpoint.asynchronous` training waits while its state is copied to host memory, and one
    small reduction after each step until the copy is on disk. A step that fails meanwhile ends the
    run with the checkpoint before.

    Args:
        parts: what the job is made of.
        start: where the run stands: this state has a checkpoint, or is the very first.
        average: a running average to save along.
        tokenizer: folder to copy along.
        writers: get a line for each checkpoint: the seconds that training waited for it, and those
            that it was written beside training.
    """

    def __init__(
        self,
        parts: TrainerComponents,
        start: TrainState,
        *,
        average: ExponentialMovingAverage | None,
        tokenizer: Path | None,
        writers: Sequence[MetricsWriter] = (),
    ) -> None:
        self._parts, self._average, self._tokenizer = parts, average, tokenizer
        self._writers = writers
        self.saved_step = start.step
        """Step of the newest checkpoint that is whole."""
        self._in_flight: _PendingSave | None = None
        self._has_warned = False
        self._in_background = parts.recipe.checkpoint.asynchronous
        self._copies = HostBuffers(parts.network, parts.groups, reuse=self._in_background)

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Goes on with the save in flight; begins one when it is due."""
        if self._average is not None:
            self._average.update()
        self.advance()
        if is_due(state.step, self._parts.recipe.checkpoint.every_steps):
            self.save(state)

    def on_train_end(self, state: TrainState) -> None:
        """Waits for the save in flight; saves what the last checkpoint does not have yet."""
        self.advance(wait=True)
        if self._parts.recipe.checkpoint.every_steps > 0 and state.step != self.saved_step:
            self.save(state)
        self.advance(wait=True)

    def save(self, state: TrainState) -> None:
        """Begins the checkpoint of this state, after the one in flight; all processes take part."""
        if self._in_flight is not None and not self._has_warned:
            self._has_warned = True
            get_logger(__name__).warning(
                "step %d is to be saved before the checkpoint of step %d is written, and waits for "
                "it (said once): raise checkpoint.every_steps or write to a faster place",
                state.step,
                self._in_flight.step,
            )
        self.advance(wait=True)
        began = time.perf_counter()
        self._in_flight = _PendingSave(self._begin(state), state.step, began)
        self._in_flight.blocked_seconds = time.perf_counter() - began
        if not self._in_background:
            self.advance(wait=True)

    def _begin(self, state: TrainState) -> CheckpointSave:
        parts, take = self._parts, self._copies.copy_to_host
        optimizer = parts.engine.export_state(take)
        sections = {"master": optimizer.master, **optimizer.moments}
        if self._average is not None:
            average = self._average.average.items()
            sections["average"] = {name: take("average", name, value) for name, value in average}
        self._copies.synchronize()
        return CheckpointSave(
            Path(parts.recipe.run.folder) / "checkpoints",
            step=state.step,
            network=parts.network,
            recipe=parts.recipe,
            state=state.to_json(),
            weights=optimizer.weights(parts.network),
            optimizer=sections,
            tokenizer=self._tokenizer,
        )

    def advance(self, *, wait: bool = False) -> None:
        """Takes the save in flight as far as it goes without waiting, or to its end."""
        now = self._in_flight
        if now is None:
            return
        looked = time.perf_counter()
        try:
            if wait:
                now.saving.wait()
            is_done = now.saving.poll()
        except CheckpointError:
            self._in_flight = None
            raise
        ended = time.perf_counter()
        now.blocked_seconds += ended - looked
        if is_done:
            self._in_flight = None
            self.saved_step = now.step
            self._report(now, total_seconds=ended - now.began)

    def close(self) -> None:
        """Gives up a save in flight: nothing of it is written after this, and it does not count."""
        if self._in_flight is not None:
            self._in_flight.saving.cancel()
            self._in_flight = None

    def _report(self, saved: _PendingSave, *, total_seconds: float) -> None:
        background = total_seconds - saved.blocked_seconds
        get_logger(__name__).info(
            "saved %s; training waited %.2f s for it", saved.saving.folder, saved.blocked_seconds
        )
        for writer in self._writers:
            writer.write(
                {
                    "step": saved.step,
                    "checkpoint_seconds": saved.blocked_seconds,
                    "checkpoint_background_seconds": background,
                }
            )
