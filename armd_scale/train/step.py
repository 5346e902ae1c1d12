"""One optimizer step: micro-batches in, weights updated, (loss, gradient norm) out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
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


@dataclass(frozen=True)
class StepResult:
    """What a step reports."""

    loss: float
    """Mean negative log-likelihood of the global batch, in nats per target."""
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    tokens: int
    """Targets in the global batch."""


def train_step(
    engine: ZeroEngine,
    stages: Sequence[ScheduledStage],
    batches: Sequence[ArmdBatch],
    *,
    learning_rate: float,
    groups: ProcessGroupCollection,
) -> StepResult:
    """Updates the weights with the mean loss over the targets of the global batch.

    The targets are counted first, over all data-parallel ranks, because documents differ in how
    many they have: every target weighs the same, whichever rank and micro-batch it is in.

    Raises:
        TrainingError: the loss is not finite; the weights are then as before the step.
    """
    size = groups.dp.size()
    num_targets = torch.stack([batch.is_target.sum() for batch in batches]).sum()
    dist.all_reduce(num_targets, group=groups.dp)

    def loss_of(nll: Tensor, batch: ArmdBatch) -> tuple[Tensor, Tensor]:
        total, _ = sum_over_targets(nll, batch.is_target)
        # DeepSpeed averages gradients over data parallelism; the sum is what is wanted.
        return total * size / num_targets, total.detach()

    with engine.accumulate():
        totals = run_micro_batches(stages, batches, loss_of=loss_of, groups=groups)
    loss = float(sum_from_last_stage(totals, groups) / num_targets)
    if not math.isfinite(loss):
        samples = [int(k) for batch in batches for k in batch.sample_index]
        raise TrainingError(
            f"the loss must be finite, got {loss} on samples {min(samples)} to {max(samples)}: "
            "lower optim.lr, lengthen optim.warmup_steps, or look at those samples"
        )
    grad_norm = engine.step(learning_rate)
    return StepResult(loss=loss, grad_norm=grad_norm, tokens=int(num_targets))
