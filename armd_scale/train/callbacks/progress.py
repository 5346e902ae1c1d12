"""The progress bar, the metrics of training steps, and a record of skipped steps."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from armd_scale.log import ProgressBar, get_logger
from armd_scale.metrics.writer import MetricsWriter
from armd_scale.optim.lr_schedule import learning_rate_at
from armd_scale.plan.compute import (
    can_run_one_stream,
    hardware_flops_per_target,
    model_flops_per_target,
)
from armd_scale.train.callbacks.base import is_due
from armd_scale.train.context import TrainingContext
from armd_scale.train.device_metrics import peak_flops, peak_memory_gib
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult


class ProgressLogger:
    """Callback that shows progress and writes the metrics of training steps.

    Args:
        context: of the run.
        writers: receive a line every `log.every_steps` steps, and one for each skipped step.
    """

    def __init__(self, context: TrainingContext, writers: Sequence[MetricsWriter]) -> None:
        self._context, self._writers = context, writers
        self._stack = ExitStack()
        self._bar: ProgressBar | None = None
        recipe = context.recipe
        # FLOPs per target, indexed by whether the step ran one stream only (left to right).
        self._model_flops, self._hardware_flops = (
            [count(recipe, one_stream=one_stream) for one_stream in (False, True)]
            for count in (model_flops_per_target, hardware_flops_per_target)
        )
        self._reset_window()

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Advance the progress bar; write a line of metrics when one is due."""
        self._add_to_window(state, result)
        if self._context.environment.is_rank0:
            rate = self._tokens / self._seconds
            self._open_bar(state).advance(note=f"loss {result.loss:.4f}  {rate:,.0f} tokens/s")
        # A skipped step has no line of metrics; its time and tokens still count in the next one.
        if result.skip_reason is not None:
            self._report_skipped_step(state, result.skip_reason)
        elif is_due(state.step, self._context.recipe.log.every_steps):
            line = self._metrics(state, result)
            for writer in self._writers:
                writer.write(line)
            self._reset_window()

    def on_train_end(self, state: TrainState) -> None:
        """Do nothing: every line is already written."""

    def close(self) -> None:
        """Close the progress bar."""
        self._stack.close()

    def _open_bar(self, state: TrainState) -> ProgressBar:
        # On the first step, so that the bar is not drawn while the run is still being built.
        if self._bar is None:
            run, steps = self._context.recipe.run, self._context.recipe.train.steps
            # The steps that are left, this one included: a resumed run starts a new bar.
            bar = ProgressBar(run.name, steps - (state.step - 1), unit="steps")
            self._bar = self._stack.enter_context(bar)
        return self._bar

    def _reset_window(self) -> None:
        self._seconds, self._local_seconds, self._tokens, self._steps = 0.0, 0.0, 0, 0
        self._model_flops_done, self._hardware_flops_done = 0.0, 0.0

    def _add_to_window(self, state: TrainState, result: StepResult) -> None:
        """Add a step to the sums that the rates of the next line are computed from.

        Rates divide by the seconds of the steps themselves, never by the time since the last line:
        evaluations and saves in between would lower them.
        """
        recipe = self._context.recipe
        self._seconds += result.seconds
        self._local_seconds += result.local_seconds
        self._tokens += result.tokens
        self._steps += 1
        one_stream = can_run_one_stream(recipe.model, recipe.order.at_step(state.step - 1))
        self._model_flops_done += result.tokens * self._model_flops[one_stream]
        self._hardware_flops_done += result.tokens * self._hardware_flops[one_stream]

    def _metrics(self, state: TrainState, result: StepResult) -> dict[str, Any]:
        recipe, device = self._context.recipe, self._context.device
        # Schedules are functions of the steps done before a step, one less than after it.
        last_step = state.step - 1
        return {
            "step": state.step,
            "loss": result.loss,
            **({} if recipe.train.distillation is None else {"kl_nats": result.kl}),
            "grad_norm": result.grad_norm,
            "learning_rate": learning_rate_at(recipe.optim, recipe.train, last_step),
            "tokens": state.consumed_tokens,
            "tokens_per_second": self._tokens / self._seconds,
            "step_seconds": self._seconds / self._steps,
            "mfu": self._model_flops_done / self._seconds / self._peak_flops,
            "hfu": self._hardware_flops_done / self._seconds / self._peak_flops,
            "order": str(recipe.order.at_step(last_step)),
            "memory_gib": peak_memory_gib(device),
            **slowest_rank(self._local_seconds / self._steps, device),
        }

    @cached_property
    def _peak_flops(self) -> float:
        """Peak FLOP/s of all ranks together, measured when it is first needed."""
        return peak_flops(self._context.device, self._context.dtype) * dist.get_world_size()

    def _report_skipped_step(self, state: TrainState, reason: str) -> None:
        """Name the samples of a skipped step, so that the user can look at them."""
        # With a global batch of 64, step 3 has consumed 192 samples: its own are 128 to 191.
        last = state.consumed_samples - 1
        first = last + 1 - self._context.recipe.train.global_batch
        get_logger(__name__).warning(
            "step %d skipped: %s (samples %d-%d)", state.step, reason, first, last
        )
        sample_range = [first, last]
        self._context.events.write(
            "skipped_step", state.step, reason=reason, sample_range=sample_range
        )
        for writer in self._writers:
            writer.write({"step": state.step, "skipped": reason, "sample_range": sample_range})


def slowest_rank(local_seconds: float, device: torch.device) -> dict[str, float | int]:
    """Gather the local seconds per step: their mean, their maximum and whose it is (collective).

    Ranks of one tensor-parallel or pipeline group wait for each other within the passes, so a slow
    one among them raises the local seconds of its whole group.
    """
    # On the device of the run: NCCL has no collectives for CPU tensors.
    own = torch.tensor([local_seconds], device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    seconds = torch.cat(gathered)
    return {
        "local_seconds_mean": float(seconds.mean()),
        "local_seconds_max": float(seconds.max()),
        "slowest_rank": int(seconds.argmax()),
    }
