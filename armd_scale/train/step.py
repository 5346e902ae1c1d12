"""One optimizer step: micro-batches in, weights updated, (loss, gradient norm) out."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.data.batch import ArmdBatch
from armd_scale.fault.watchdog import Watchdog
from armd_scale.loss import sum_over_targets
from armd_scale.model.loss_spec import TrainMicroBatch
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.pipeline.schedule import (
    ScheduledChunk,
    reduce_loss,
    run_micro_batches,
)
from armd_scale.train.teacher import Teacher


@dataclass(frozen=True)
class StepResult:
    """What a step reports."""

    loss: float
    """Mean negative log-likelihood of the global batch, in nats per target."""
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    tokens: int
    """Targets in the global batch."""
    kl: float | None
    """Mean KL(parent || model) in nats per left-to-right target; None without parent or target."""
    seconds: float
    """Time it took, waiting for its data included."""
    local_seconds: float = 0.0
    """Of that, what this process took for itself: its data, and forward and backward passes."""
    skip_reason: str | None = None
    """Why the weights are as before the step, such as "a loss of nan"; None: they are not."""


def train_step(
    engine: ZeroEngine,
    stages: Sequence[ScheduledChunk],
    batches: Sequence[ArmdBatch],
    *,
    learning_rate: float,
    groups: ProcessGroupCollection,
    started: float,
    check_loss: Callable[[float], str | None] = lambda loss: None,
    watchdog: Watchdog | None = None,
    parent: Teacher | None = None,
) -> StepResult:
    """Updates the weights with the mean loss over the targets of the global batch.

    The targets are counted first, over all data-parallel ranks, because documents differ in how
    many they have: every target weighs the same, whichever rank and micro-batch it is in.

    Args:
        engine: the network with its optimizer.
        stages: what the schedule sees of the network.
        batches: this rank's micro-batches.
        learning_rate: of this step.
        groups: the process groups of the layout.
        started: when the step began, by time.perf_counter, before its data were asked for.
        object_to: why a loss must not be learnt from; None where it may. What is not finite never
            is.
        watchdog: is told what begins.
        parent: what the network is held to; `stages` must be those that compare with it.
    """
    set_phase = (watchdog or Watchdog()).set_phase
    clock = _Timer(started)
    size = groups.dp.size()
    counts = torch.stack([_count(batch, parent) for batch in batches]).sum(dim=0)
    dist.all_reduce(counts, group=groups.dp)
    terms = counts.new_tensor([1.0] if parent is None else [1.0, parent.weight], dtype=torch.double)
    # DeepSpeed averages gradients over data parallelism; the sum is what is wanted.
    scale = (terms * size / counts.clamp(min=1)).view(-1, 1, 1)
    lessons = [TrainMicroBatch(batch, scale * batch.is_target) for batch in batches]

    def loss_of(output: tuple[Tensor, Tensor], lesson: TrainMicroBatch) -> tuple[Tensor, Tensor]:
        loss, nats = output
        is_target = lesson.batch.is_target
        return loss, torch.stack([sum_over_targets(term, is_target)[0] for term in nats])

    set_phase("in forward and backward passes")
    with engine.accumulate():
        clock.resume()
        outputs = run_micro_batches(stages, lessons, loss_fn=loss_of, groups=groups)
        clock.stop()
        loss, *divergence = (
            float(reduce_loss([sums[i] for sums in outputs], groups) / count)
            for i, count in enumerate(counts)
        )
        objection = check_loss(loss) if math.isfinite(loss) else f"a loss of {loss}"
        if objection is not None:
            engine.skip_next_step()
        set_phase("summing gradients")
    set_phase("updating weights")
    grad_norm = engine.step(learning_rate)
    if objection is None and not math.isfinite(grad_norm):
        objection = f"a gradient norm of {grad_norm}"
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        tokens=int(counts[0]),
        kl=divergence[0] if parent is not None and counts[1] > 0 else None,
        seconds=time.perf_counter() - started,
        local_seconds=clock.seconds(),
        skip_reason=objection,
    )


def _count(batch: ArmdBatch, parent: Teacher | None) -> Int[Tensor, " terms"]:
    """Targets that each term of the loss is a mean over."""
    terms = [batch] if parent is None else [batch, batch.left_to_right_subset()[1]]
    return torch.stack([term.is_target.sum() for term in terms])


class _Timer:
    """The time that this process takes for itself, between meetings with others.

    On a GPU passes are timed by its own events, which are read after the step has waited for it.
    """

    def __init__(self, started: float) -> None:
        self._seconds = time.perf_counter() - started
        self._on_gpu = torch.cuda.is_available()

    def resume(self) -> None:
        self._begin = self._now()

    def stop(self) -> None:
        self._end = self._now()

    def seconds(self) -> float:
        if isinstance(self._begin, float):
            return self._seconds + self._end - self._begin
        return self._seconds + self._begin.elapsed_time(self._end) / 1000

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
