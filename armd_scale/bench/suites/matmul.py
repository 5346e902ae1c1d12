"""FLOPs per second of square matrix products: the peak that MFU is relative to."""

from functools import partial

import torch

from armd_scale.bench.suites.step import compute_dtype
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.parallel.environment import read_environment
from armd_scale.train.device_metrics import peak_flops

SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192, 16384)}


def measure_matmul(*, repeats: int = 7, sizes: tuple[int, ...] | None = None) -> list[Row]:
    """Time square matrix products in the type that networks compute in.

    Args:
        repeats: timed repeats of each size.
        sizes: rows and columns of the matrices; None: SIZES of the device.

    Returns:
        A row for each size: its FLOPs per second, and their ratio to the peak behind `mfu` in
        metrics.jsonl, which is measured in the same way at the start of a run. A ratio well above 1
        means that this peak is too low, and `mfu` too high.
    """
    device = read_environment().device
    dtype = compute_dtype(device)
    # One large size: 8192 on a GPU, 1024 on CPU.
    peak = peak_flops(device, dtype)
    matrices = {
        str(size): torch.randn(size, size, device=device, dtype=dtype)
        for size in sizes or SIZES[device.type]
    }
    cases = {name: partial(torch.matmul, matrix, matrix) for name, matrix in matrices.items()}
    rows: list[Row] = []
    for name, timing in time_interleaved(cases, repeats=repeats).items():
        # n^3 multiply-adds, each two operations.
        flops_per_second = 2 * int(name) ** 3 / timing.median
        rows.append(
            {
                "size": int(name),
                "type": str(dtype).removeprefix("torch."),
                "median ms": 1000 * timing.median,
                "TFLOP/s": flops_per_second / 1e12,
                "peak of mfu, TFLOP/s": peak / 1e12,
                "ratio": flops_per_second / peak,
            }
        )
    return rows
