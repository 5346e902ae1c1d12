"""How the time of a training step grows with the network, the text, micro-batches and stages."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.suites.pipeline import places, scheduled_step, time_stages
from armd_scale.bench.suites.step import (
    SHAPES,
    Shape,
    Step,
    batch_under,
    compute_dtype,
    network,
    step_of,
)
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

SIZES = {
    "layers": (2, 4, 6, 8),
    "micro_batch": (1, 2, 3, 4),
    "seq_length": (256, 512, 1024, 2048),
    "accumulation": (1, 2, 4, 8),
    "stages": (1, 2, 4),
}
"""What can grow, and to what; `accumulation` is the number of micro-batches, of one sample."""


def compare_sizes(
    *, shape: str = "small", grows: Sequence[str] = tuple(SIZES), runs: int = 5
) -> list[Row]:
    """Times ARMD steps as one thing grows at a time.

    Args:
        shape: one of SHAPES, what all but pipeline stages start from.
        grows: keys of SIZES.
        runs: how often each is timed.

    Returns:
        The rows of `fitted` for each growth. Layers, samples and micro-batches must lie on a line
        over operations; so must the length of text, whose operations grow with its square. Then a
        row for each number of pipeline stages, with the time that 1F1B leads to expect.
    """
    base = SHAPES[shape]
    one = dataclasses.replace(base, micro_batch=1)
    device = read_environment().device
    rows: list[Row] = []
    with process_groups(read_environment(), ParallelConfig()) as groups:
        how = {"device": device, "runs": runs}
        for name in (name for name in grows if name != "stages"):
            if name == "accumulation":
                rows += time_accumulation(one, SIZES[name], groups, **how)
            else:
                rows += time_growth(
                    name, {n: _grown(base, name, n) for n in SIZES[name]}, groups, **how
                )
    if "stages" in grows:
        on_cuda = device.type == "cuda"  # where a process needs a device of its own
        stages = [n for n in SIZES["stages"] if not on_cuda or n <= places()]
        rows += time_stages(stages=stages, runs=runs)
    return rows


def _grown(base: Shape, name: str, size: int) -> Shape:
    if name == "layers":
        return dataclasses.replace(base, model=dataclasses.replace(base.model, layers=size))
    return dataclasses.replace(base, **{name: size})


def time_growth(
    name: str,
    shapes: Mapping[int, Shape],
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
    runs: int,
) -> list[Row]:
    """The rows of one kind of growth of a micro-batch or a network."""
    dtype = compute_dtype(device)
    steps = {
        size: step_of(
            network(shape.model, shape, groups, dtype=dtype).to(device),
            batch_under("random", shape).to(device),
        )
        for size, shape in shapes.items()
    }
    return _time_steps(name, steps, [_flops(shape) for shape in shapes.values()], runs=runs)


def time_accumulation(
    shape: Shape,
    numbers: Sequence[int],
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
    runs: int,
) -> list[Row]:
    """The rows of steps with more and more micro-batches, whose gradients add up."""
    steps = accumulating_steps(shape, numbers, groups, device=device)
    flops = [number * _flops(shape) for number in numbers]
    return _time_steps("accumulation", steps, flops, runs=runs)


def accumulating_steps(
    shape: Shape, numbers: Sequence[int], groups: ProcessGroupCollection, *, device: torch.device
) -> dict[int, Step]:
    """A step for each number of micro-batches."""
    return {
        number: scheduled_step(shape, groups, micro_batches=number, device=device)
        for number in numbers
    }


def fit_line(name: str, flops: Mapping[int, int], seconds: Sequence[float]) -> list[Row]:
    """Measured times beside the line that fits them best over operations.

    Args:
        name: what grows.
        flops: of a step, by what it grows to.
        seconds: of a step, in the same order.

    Returns:
        A row for each: the ratio of time and line, and its largest distance from 1 in all rows.
    """
    counts = np.array(list(flops.values()))
    slope, start = np.polyfit(counts / counts.max(), seconds, 1)
    line = (slope * counts / counts.max() + start).tolist()
    worst = max(abs(taken / expected - 1) for taken, expected in zip(seconds, line, strict=True))
    return [
        {
            "grows": name,
            "to": size,
            "10^9 operations": flops[size] / 1e9,
            "median ms": 1000 * taken,
            "expected ms": 1000 * expected,
            "ratio": taken / expected,
            "worst residual": worst,
            "processes": 1,
            "cores": places(),
        }
        for size, taken, expected in zip(flops, seconds, line, strict=True)
    ]


def _time_steps(
    name: str, steps: Mapping[int, Step], flops: Sequence[int], *, runs: int
) -> list[Row]:
    times = time_interleaved({str(size): step for size, step in steps.items()}, runs=runs)
    seconds = [taken.median for taken in times.values()]
    return fit_line(name, dict(zip(steps, flops, strict=True)), seconds)


def _flops(shape: Shape) -> int:
    return shape.flops_per_token() * shape.micro_batch * shape.seq_length
