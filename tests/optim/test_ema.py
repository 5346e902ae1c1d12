"""The running average of weights."""

import torch
from torch import nn

from armd_scale.optim.ema import ExponentialMovingAverage


def linear(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    network = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.constant_(network.weight, value)
    return network


def test_it_starts_at_the_weights_and_follows_them() -> None:
    network = linear(1.0)
    kept = ExponentialMovingAverage(network.named_parameters, 0.75)
    assert kept.average["weight"].item() == 1.0
    nn.init.constant_(network.weight, 3.0)
    kept.update()
    assert kept.average["weight"].item() == 1.5
    kept.update()
    assert kept.average["weight"].item() == 1.875
    assert network.weight.item() == 3.0


def test_small_changes_are_not_lost_to_bf16() -> None:
    network = linear(1.0, torch.bfloat16)
    kept = ExponentialMovingAverage(network.named_parameters, 0.999)
    nn.init.constant_(network.weight, 2.0)
    kept.update()
    assert kept.average["weight"].dtype == torch.float32
    torch.testing.assert_close(kept.average["weight"], torch.tensor([[1.001]]))


def test_a_saved_average_goes_on() -> None:
    kept = ExponentialMovingAverage(linear(5.0).named_parameters, 0.5)
    kept.load({"weight": torch.tensor([[1.0]])})
    kept.update()
    assert kept.average["weight"].item() == 3.0
