"""Measured peak FLOPs and memory of the device."""

import statistics
import time
from functools import cache

import psutil
import torch

REPEATS = 5


@cache  # the peak does not change within a process, and measuring it takes up to a second
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the peak FLOP/s of the device: the median over several large square matmuls.

    MFU and HFU are fractions of this, so they say how far training is from what this device
    achieves at best, not from its data sheet.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    # One more than is used: the first run also pays for kernel selection and memory.
    for _ in range(REPEATS + 1):
        _synchronize(device)
        start = time.perf_counter()
        torch.matmul(a, a)
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory that PyTorch allocated on a GPU; on CPU the resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def device_memory_gib(device: torch.device) -> float | None:
    """Total memory of a GPU; None on CPU, whose memory is shared with other processes."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory / 2**30


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
