"""A running average of the weights (EMA), which often evaluates better than the last weights."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """average <- decay x average + (1 - decay) x weights, after every step, in float32.

    Args:
        weights: gives name and value of every weight, whole, each time it is called.
        decay: share of the old average that a step keeps.
    """

    def __init__(self, weights: Callable[[], Iterable[tuple[str, Tensor]]], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.average: dict[str, Tensor] = {
            name: weight.detach().float().clone() for name, weight in weights()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of this step in."""
        for name, weight in self._weights():
            self.average[name].lerp_(weight.float(), 1 - self._decay)

    def load(self, average: dict[str, Tensor]) -> None:
        """Continues from a saved average."""
        for name, value in average.items():
            self.average[name].copy_(value)
