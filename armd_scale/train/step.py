"""One optimizer step: micro-batches in, weights updated, (loss, gradient norm) out."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Int
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.data.batch import ArmdBatch
from armd_scale.errors import TrainingError
from armd_scale.loss import sum_over_targets
from armd_scale.optim.zero import ZeroEngine
from armd_scale.parallel.schedule import (
    ScheduledStage,
    run_micro_batches,
    sum_from_last_stage,
)
from armd_scale.train.parent import Parent


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


def train_step(
    engine: ZeroEngine,
    stages: Sequence[ScheduledStage],
    batches: Sequence[ArmdBatch],
    *,
    learning_rate: float,
    groups: ProcessGroupCollection,
    started: float,
    parent: Parent | None = None,
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
        parent: what the network is held to; `stages` must be those that compare with it.

    Raises:
        TrainingError: the loss or its gradient is not finite; the weights are as before the step.
    """
    size = groups.dp.size()
    counts = torch.stack([_count(batch, parent) for batch in batches]).sum(dim=0)
    dist.all_reduce(counts, group=groups.dp)
    weights = counts.new_tensor(
        [1.0] if parent is None else [1.0, parent.weight], dtype=torch.float
    )

    def loss_of(output: Tensor, batch: ArmdBatch) -> tuple[Tensor, Tensor]:
        parts = output.unsqueeze(0) if parent is None else output
        sums = torch.stack([sum_over_targets(part, batch.is_target)[0] for part in parts])
        # DeepSpeed averages gradients over data parallelism; the sum is what is wanted.
        return (weights * sums * size / counts.clamp(min=1)).sum(), sums.detach()

    with engine.accumulate():
        made = run_micro_batches(stages, batches, loss_of=loss_of, groups=groups)
    loss, *divergence = (
        float(sum_from_last_stage([sums[i] for sums in made], groups) / count)
        for i, count in enumerate(counts)
    )
    _require_finite(loss, "a loss", batches)
    grad_norm = engine.step(learning_rate)
    _require_finite(grad_norm, "a gradient norm", batches)
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        tokens=int(counts[0]),
        kl=divergence[0] if parent is not None and counts[1] > 0 else None,
        seconds=time.perf_counter() - started,
    )


def _count(batch: ArmdBatch, parent: Parent | None) -> Int[Tensor, " terms"]:
    """Targets that each term of the loss is a mean over."""
    terms = [batch] if parent is None else [batch, batch.in_text_order()[1]]
    return torch.stack([term.is_target.sum() for term in terms])


def _require_finite(value: float, what: str, batches: Sequence[ArmdBatch]) -> None:
    if math.isfinite(value):
        return
    samples = [int(k) for batch in batches for k in batch.sample_index]
    raise TrainingError(
        f"the loss and its gradient must be finite, got {what} of {value} on samples "
        f"{min(samples)} to {max(samples)}: lower optim.lr or lengthen optim.warmup_steps, then "
        "start again to resume from the newest checkpoint"
    )
