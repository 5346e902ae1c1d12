"""Measured figures of the device."""

import torch

from armd_scale.train.hardware import memory_gib, peak_flops

CPU = torch.device("cpu")


def test_the_peak_is_a_rate_that_a_machine_can_have() -> None:
    assert 1e8 < peak_flops(CPU, torch.float32) < 1e15


def test_memory_grows_with_what_is_held() -> None:
    before = memory_gib(CPU)
    held = torch.ones(2**26)
    assert 0.2 < memory_gib(CPU) - before < 1
    assert held.numel() == 2**26
