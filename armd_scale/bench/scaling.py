"""How the time of a training step grows with the network and with the text."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.rows import Row
from armd_scale.bench.step import SHAPES, Shape, batch_under, compute_dtype, network, step_of
from armd_scale.bench.timing import side_by_side
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.groups import process_groups


def compare_sizes(
    *,
    shape: str = "small",
    layers: Sequence[int] = (2, 4, 6, 8),
    micro_batches: Sequence[int] = (1, 2, 3, 4),
    seq_lengths: Sequence[int] = (256, 512, 1024, 2048),
    runs: int = 5,
) -> list[Row]:
    """Times ARMD steps as layers, samples and the length of text grow, one at a time.

    Returns:
        For each of the three a row for each value: time, operations, and what the line that fits
        time against operations best says instead.
    """
    base = SHAPES[shape]
    grown = {
        "layers": {
            n: dataclasses.replace(base, model=dataclasses.replace(base.model, layers=n))
            for n in layers
        },
        "micro_batch": {n: dataclasses.replace(base, micro_batch=n) for n in micro_batches},
        "seq_length": {n: dataclasses.replace(base, seq_length=n) for n in seq_lengths},
    }
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        return [
            row
            for name, shapes in grown.items()
            for row in time_growth(name, shapes, groups, device=environment.device, runs=runs)
        ]


def time_growth(
    name: str,
    shapes: Mapping[int, Shape],
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
    runs: int,
) -> list[Row]:
    """The rows of one kind of growth."""
    dtype = compute_dtype(device)
    steps = {
        str(size): step_of(
            network(shape.model, shape, groups, dtype=dtype).to(device),
            batch_under("random", shape).to(device),
        )
        for size, shape in shapes.items()
    }
    times = side_by_side(steps, runs=runs)
    flops = [
        shape.flops_per_token() * shape.micro_batch * shape.seq_length for shape in shapes.values()
    ]
    seconds = [taken.median for taken in times.values()]
    slope, start = np.polyfit(flops, seconds, 1)
    fitted = slope * np.array(flops) + start
    return [
        {
            "grows": name,
            "to": size,
            "10^9 operations": count / 1e9,
            "median ms": 1000 * taken,
            "fitted ms": 1000 * line,
            "ratio": taken / line,
        }
        for size, count, taken, line in zip(shapes, flops, seconds, fitted.tolist(), strict=True)
    ]
