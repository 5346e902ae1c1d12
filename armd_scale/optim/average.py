"""A running average of the weights (EMA), which often evaluates better than the last weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- decay x average + (1 - decay) x weights, after every step, in float32.

    Args:
        parameters: what is averaged, by name.
        decay: share of the old average that a step keeps.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.average: dict[str, Tensor] = {
            name: p.detach().float().clone() for name, p in parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of this step in."""
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter.float(), 1 - self._decay)

    def load(self, average: dict[str, Tensor]) -> None:
        """Continues from a saved average."""
        for name, value in average.items():
            self.average[name].copy_(value)
