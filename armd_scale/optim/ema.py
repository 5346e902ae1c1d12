"""Exponential moving average (EMA) of the weights, which often evaluates better than the last."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """average <- decay * average + (1 - decay) * weights, after every step, in float32.

    bfloat16 has 8 significant bits: updates of relative size 1 - decay = 0.001 would be lost.

    Args:
        weights: yields name and full value of every weight each time it is called.
        decay: fraction of the old average that a step keeps.
    """

    def __init__(self, weights: Callable[[], Iterable[tuple[str, Tensor]]], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.average: dict[str, Tensor] = {
            name: weight.detach().float().clone() for name, weight in weights()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        for name, weight in self._weights():
            self.average[name].lerp_(weight.float(), 1 - self._decay)

    def load(self, average: dict[str, Tensor]) -> None:
        """Continue from a saved average."""
        for name, value in average.items():
            self.average[name].copy_(value)
