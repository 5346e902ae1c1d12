"""Learning rate schedule as a pure function of the step, so that a resume needs no state."""

import math

from armd_scale.config.resolve import ResolvedOptim
from armd_scale.config.schema import TrainConfig


def learning_rate_at(optim: ResolvedOptim, train: TrainConfig, step: int) -> float:
    """Return the learning rate of an optimizer step.

    Linear warmup over `warmup_steps`, reaching `lr` in its last step. Then, by `schedule`:
    `cosine`: half a cosine down to `min_lr` in the last step; `wsd` (warmup, stable, decay): flat,
    then linear down to `min_lr` over the last `decay_steps`; `constant`: flat.

    Args:
        optim: the recipe's optim section.
        train: the recipe's train section, for the number of steps.
        step: step index, from 0. Beyond the last step the rate stays as it is.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    start = optim.warmup_steps
    if optim.schedule == "wsd":
        start = max(start, train.steps - optim.decay_steps)
    # 0 in step `start`, 1 in the last step (steps - 1).
    progress = min(1.0, max(0.0, (step - start) / max(1, train.steps - 1 - start)))
    if optim.schedule == "wsd":
        return optim.lr + (optim.min_lr - optim.lr) * progress
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * progress)) / 2
