"""What the device can do and what it holds, measured rather than looked up."""

import statistics
import time

import psutil
import torch

REPEATS = 5


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large square matrix product: the median of several.

    Utilisation is a share of this, so it says how far training is from what this machine does at
    best, not from a data sheet.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(REPEATS + 1):
        _synchronize(device)
        start = time.perf_counter()
        torch.matmul(a, a)
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory of the device held so far; on a CPU the process's resident memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def device_memory_gib(device: torch.device) -> float | None:
    """Memory of a GPU; None on CPU, where it is the machine's, and shared."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory / 2**30


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
