"""How quickly the device multiplies matrices: what model FLOPs utilisation is a share of."""

from functools import partial

import torch

from armd_scale.bench.suites.step import compute_dtype
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.parallel.environment import read_environment
from armd_scale.train.device_metrics import peak_flops

SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192, 16384)}


def measure_products(*, runs: int = 7, sizes: tuple[int, ...] | None = None) -> list[Row]:
    """Times square matrix products in the type that networks compute in.

    Args:
        runs: how often each is timed.
        sizes: rows and columns of the matrices; None: SIZES of the device.

    Returns:
        A row for each size: its operations a second as a ratio to the peak that `mfu` in
        metrics.jsonl is a share of, which is measured in the same way at the start of a run. A size
        that is much quicker than 1 says that this peak is set too low, and `mfu` too high.
    """
    device = read_environment().device
    dtype = compute_dtype(device)
    peak = peak_flops(device, dtype)
    matrices = {
        str(size): torch.randn(size, size, device=device, dtype=dtype)
        for size in sizes or SIZES[device.type]
    }
    ways = {name: partial(torch.matmul, one, one) for name, one in matrices.items()}
    rows: list[Row] = []
    for name, taken in time_interleaved(ways, runs=runs).items():
        flops = 2 * int(name) ** 3 / taken.median
        rows.append(
            {
                "size": int(name),
                "type": str(dtype).removeprefix("torch."),
                "median ms": 1000 * taken.median,
                "TFLOP/s": flops / 1e12,
                "peak of mfu, TFLOP/s": peak / 1e12,
                "ratio": flops / peak,
            }
        )
    return rows
