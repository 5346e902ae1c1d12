"""Measured peak FLOPs and memory."""

import torch

from armd_scale.train.device_metrics import peak_flops, peak_memory_gib

CPU = torch.device("cpu")


def test_the_peak_is_a_plausible_rate() -> None:
    assert 1e8 < peak_flops(CPU, torch.float32) < 1e15


def test_memory_grows_with_allocations() -> None:
    before = peak_memory_gib(CPU)
    tensor = torch.ones(2**26)
    assert 0.2 < peak_memory_gib(CPU) - before < 1
    assert tensor.numel() == 2**26
