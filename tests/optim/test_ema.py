"""Exponential moving average of weights."""

import torch
from torch import nn

from armd_scale.optim.ema import ExponentialMovingAverage


def linear(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    network = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.constant_(network.weight, value)
    return network


def test_the_average_starts_at_the_weights_and_follows_them() -> None:
    network = linear(1.0)
    ema = ExponentialMovingAverage(network.named_parameters, 0.75)
    assert ema.average["weight"].item() == 1.0
    nn.init.constant_(network.weight, 3.0)
    ema.update()
    assert ema.average["weight"].item() == 1.5
    ema.update()
    assert ema.average["weight"].item() == 1.875
    assert network.weight.item() == 3.0


def test_small_changes_are_not_lost_to_bf16() -> None:
    network = linear(1.0, torch.bfloat16)
    ema = ExponentialMovingAverage(network.named_parameters, 0.999)
    nn.init.constant_(network.weight, 2.0)
    ema.update()
    assert ema.average["weight"].dtype == torch.float32
    torch.testing.assert_close(ema.average["weight"], torch.tensor([[1.001]]))


def test_a_loaded_average_continues() -> None:
    ema = ExponentialMovingAverage(linear(5.0).named_parameters, 0.5)
    ema.load({"weight": torch.tensor([[1.0]])})
    ema.update()
    assert ema.average["weight"].item() == 3.0
