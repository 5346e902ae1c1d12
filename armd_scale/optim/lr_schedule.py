"""Learning rate as a pure function of the step."""

import math

from armd_scale.config.resolve import ResolvedOptim
from armd_scale.config.schema import TrainConfig


def learning_rate_at(optim: ResolvedOptim, train: TrainConfig, step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Linear growth over `warmup_steps`, reaching `lr` at their end; then half a cosine down to
    `min_lr` at the last step, or flat and a linear decay over the last `decay_steps` (wsd:
    warm-up, stable, decay), or flat.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    start = optim.warmup_steps
    if optim.schedule == "wsd":
        start = max(start, train.steps - optim.decay_steps)
    progress = min(1.0, max(0.0, (step - start) / max(1, train.steps - 1 - start)))
    if optim.schedule == "wsd":
        return optim.lr + (optim.min_lr - optim.lr) * progress
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * progress)) / 2
