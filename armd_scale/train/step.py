"""One optimizer step: micro-batches in, weights updated, loss and gradient norm out."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from armd_scale.data.batch import ArmdBatch
from armd_scale.fault.watchdog import Watchdog
from armd_scale.loss import sum_over_targets
from armd_scale.model.loss_spec import TrainMicroBatch
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.pipeline.schedule import reduce_loss, run_micro_batches
from armd_scale.train.schedule_chunks import make_schedule_chunks
from armd_scale.train.teacher import Teacher


@dataclass(frozen=True)
class StepResult:
    """What a step reports; equal on all ranks but for `local_seconds`."""

    loss: float
    """Mean negative log-likelihood of the global batch, in nats per target."""
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    tokens: int
    """Targets in the global batch."""
    kl: float | None
    """Mean KL(teacher || model) in nats per left-to-right target; None without a teacher or without
    such targets."""
    seconds: float
    """Duration of the step, including the wait for its data."""
    local_seconds: float = 0.0
    """Time this rank spent on its data and its forward and backward passes, excluding time blocked
    in collectives of the step."""
    skip_reason: str | None = None
    """Why the update was skipped, e.g. "loss is nan"; None if it was applied."""


class StepRunner:
    """Runs optimizer steps.

    Args:
        engine: the network with its optimizer.
        teacher: adds the KL term of distillation to the loss.
        watchdog: is told the phase of the step.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        *,
        teacher: Teacher | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._engine, self._teacher = engine, teacher
        self._groups = engine.network.groups
        self._chunks = make_schedule_chunks(engine.network, engine, teacher)
        self._set_phase = (watchdog or Watchdog()).set_phase

    def run(
        self,
        batches: Sequence[ArmdBatch],
        *,
        learning_rate: float,
        start_time: float,
        check_loss: Callable[[float], str | None] = lambda loss: None,
    ) -> StepResult:
        """Update the weights with the gradient of the mean loss over the targets of a global batch.

        Args:
            batches: the micro-batches of this rank, on its device.
            learning_rate: of this step.
            start_time: time.perf_counter() when the step started, before its data were requested.
            check_loss: returns a reason to skip the update, or None. Non-finite losses are always
                skipped.
        """
        timer = _Timer(start_time)
        counts = self._count_targets(batches)
        self._set_phase("forward_backward")
        with self._engine.accumulate():
            loss, kl = self._forward_backward(batches, counts, timer)
            # The decision must fall before the gradients are reduced: inside `accumulate` one
            # gradient can still be set to NaN, which every ZeRO stage rejects on all ranks alike.
            skip_reason = check_loss(loss) if math.isfinite(loss) else f"loss is {loss}"
            if skip_reason is not None:
                self._engine.skip_next_step()
            self._set_phase("grad_reduce")
        self._set_phase("optimizer_step")
        grad_norm = self._engine.step(learning_rate)
        if skip_reason is None and not math.isfinite(grad_norm):
            skip_reason = f"gradient norm is {grad_norm}"
        return StepResult(
            loss=loss,
            grad_norm=grad_norm,
            tokens=int(counts[0]),
            kl=kl,
            seconds=time.perf_counter() - start_time,
            local_seconds=timer.seconds(),
            skip_reason=skip_reason,
        )

    def _count_targets(self, batches: Sequence[ArmdBatch]) -> Int[Tensor, " terms"]:
        """Targets of the global batch that each term of the loss is a mean over (collective).

        They are counted before the forward pass, over all data parallel ranks, because packed
        documents differ in how many targets they have: every target then weighs the same, whichever
        rank and micro-batch it is in.
        """
        counts = torch.stack([self._count_in_batch(batch) for batch in batches]).sum(dim=0)
        dist.all_reduce(counts, group=self._groups.dp)
        return counts

    def _count_in_batch(self, batch: ArmdBatch) -> Int[Tensor, " terms"]:
        terms = [batch]
        if self._teacher is not None:
            terms.append(batch.left_to_right_subset()[1])
        return torch.stack([term.is_target.sum() for term in terms])

    def _forward_backward(
        self, batches: Sequence[ArmdBatch], counts: Int[Tensor, " terms"], timer: "_Timer"
    ) -> tuple[float, float | None]:
        """Run the schedule over the micro-batches; return the mean loss and the mean KL."""
        factors = [1.0] if self._teacher is None else [1.0, self._teacher.weight]
        # DeepSpeed averages gradients over data parallel ranks where the gradient of the mean over
        # all targets is their sum; multiplying by the number of ranks undoes its division. A step
        # without left-to-right samples has no target in the KL term, hence the clamp.
        factors = counts.new_tensor(factors, dtype=torch.double) * self._groups.dp.size()
        weights = (factors / counts.clamp(min=1)).view(-1, 1, 1)
        micro_batches = [TrainMicroBatch(batch, weights * batch.is_target) for batch in batches]
        # Between the two collectives, so that waiting for a slow rank is not counted as local time.
        timer.resume()
        outputs = run_micro_batches(
            self._chunks, micro_batches, loss_fn=_loss_and_sums, groups=self._groups
        )
        timer.stop()
        # Sums of the last stage, reduced over data parallel ranks and sent to all stages.
        loss, *kl = (
            float(reduce_loss([sums[i] for sums in outputs], self._groups) / count)
            for i, count in enumerate(counts)
        )
        return loss, kl[0] if kl and counts[1] > 0 else None


def _loss_and_sums(
    output: tuple[Tensor, Tensor], micro_batch: TrainMicroBatch
) -> tuple[Tensor, Tensor]:
    """The loss of a micro-batch, and the sum over its targets of each term's nats."""
    loss, nats = output
    is_target = micro_batch.batch.is_target
    return loss, torch.stack([sum_over_targets(term, is_target)[0] for term in nats])


class _Timer:
    """Time this rank spends computing, excluding time blocked in collectives.

    Starts with what has passed since `start_time`, the wait for data. On a GPU the passes are timed
    by CUDA events, read at the end of the step, when the host has waited for the device anyway: to
    synchronize in the middle of a step would stall it.
    """

    def __init__(self, start_time: float) -> None:
        self._seconds = time.perf_counter() - start_time
        self._on_gpu = torch.cuda.is_available()

    def resume(self) -> None:
        self._start = self._now()

    def stop(self) -> None:
        self._stop = self._now()

    def seconds(self) -> float:
        if isinstance(self._start, float):
            return self._seconds + self._stop - self._start
        return self._seconds + self._start.elapsed_time(self._stop) / 1000

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
