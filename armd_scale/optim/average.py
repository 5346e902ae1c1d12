"""A running average of the weights (EMA), which often evaluates better than the last weights."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- decay x average + (1 - decay) x weights, after every step, in float32.

    Args:
        network: whose parameters are averaged.
        decay: share of the old average that a step keeps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self.average: dict[str, Tensor] = {
            name: p.detach().float().clone() for name, p in network.named_parameters()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of this step in."""
        for name, parameter in self._network.named_parameters():
            self.average[name].lerp_(parameter.float(), 1 - self._decay)

    def load(self, average: dict[str, Tensor]) -> None:
        """Continues from a saved average."""
        for name, value in average.items():
            self.average[name].copy_(value)
