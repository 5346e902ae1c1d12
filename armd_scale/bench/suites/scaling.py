"""Time of a training step against layers, micro-batch, sequence length, accumulation and stages."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.suites.pipeline import num_devices, scheduled_step, time_stages
from armd_scale.bench.suites.step import (
    WORKLOADS,
    Step,
    Workload,
    build_model,
    compute_dtype,
    random_batch,
    training_step,
)
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

VALUES = {
    "layers": (2, 4, 6, 8),
    "micro_batch": (1, 2, 3, 4),
    "seq_length": (256, 512, 1024, 2048),
    "accumulation": (1, 2, 4, 8),
    "stages": (1, 2, 4),
}
"""What can vary, and its values; `accumulation` is the number of micro-batches, each one sample."""


def measure_scaling(
    *, model_size: str = "small", vary: Sequence[str] = tuple(VALUES), repeats: int = 5
) -> list[Row]:
    """Time ARMD steps while one size varies at a time.

    Args:
        model_size: a key of WORKLOADS; the base of everything but pipeline stages.
        vary: keys of VALUES.
        repeats: timed repeats of each case.

    Returns:
        For layers, micro-batch, sequence length and accumulation the rows of `fit_line`: their time
        must be linear in FLOPs (which grow with the square of the sequence length). For stages a
        row for each number, with the time that 1F1B predicts.
    """
    base = WORKLOADS[model_size]
    # For accumulation, so that a step of n micro-batches has n samples.
    one_sample = dataclasses.replace(base, micro_batch=1)
    environment = read_environment()
    device = environment.device
    rows: list[Row] = []
    with process_groups(environment, ParallelConfig()) as groups:
        for name in (name for name in vary if name != "stages"):
            values = VALUES[name]
            if name == "accumulation":
                rows += time_accumulation(
                    one_sample, values, groups, device=device, repeats=repeats
                )
            else:
                workloads = {value: _with_value(base, name, value) for value in values}
                rows += time_workloads(name, workloads, groups, device=device, repeats=repeats)
    if "stages" in vary:
        # On CUDA every process needs its own GPU; on CPU they can share cores, only more slowly.
        limited = device.type == "cuda"
        stages = [n for n in VALUES["stages"] if not limited or n <= num_devices()]
        rows += time_stages(stages=stages, repeats=repeats)
    return rows


def _with_value(base: Workload, name: str, value: int) -> Workload:
    if name == "layers":
        # Half of the layers stay two-stream, so that FLOPs grow linearly with the layers.
        model = dataclasses.replace(base.model, layers=value, two_stream_layers=value // 2)
        return dataclasses.replace(base, model=model)
    return dataclasses.replace(base, **{name: value})


def time_workloads(
    name: str,
    workloads: Mapping[int, Workload],
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
    repeats: int,
) -> list[Row]:
    """Return the rows of one varied size of the network or the micro-batch."""
    dtype = compute_dtype(device)
    # All networks exist at once, because their steps are timed in turn.
    steps = {
        value: training_step(
            build_model(workload.model, workload, groups, dtype=dtype, device=device),
            random_batch("random", workload).to(device),
        )
        for value, workload in workloads.items()
    }
    flops = [_flops(workload) for workload in workloads.values()]
    return _time_steps(name, steps, flops, repeats=repeats)


def time_accumulation(
    workload: Workload,
    counts: Sequence[int],
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
    repeats: int,
) -> list[Row]:
    """Return the rows of steps with several numbers of accumulated micro-batches."""
    steps = accumulation_steps(workload, counts, groups, device=device)
    flops = [count * _flops(workload) for count in counts]
    return _time_steps("accumulation", steps, flops, repeats=repeats)


def accumulation_steps(
    workload: Workload,
    counts: Sequence[int],
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
) -> dict[int, Step]:
    """Return a step for each number of micro-batches."""
    return {
        count: scheduled_step(workload, groups, micro_batches=count, device=device)
        for count in counts
    }


def fit_line(name: str, flops: Mapping[int, int], seconds: Sequence[float]) -> list[Row]:
    """Compare measured times with the straight line over FLOPs that fits them best.

    Args:
        name: what varies.
        flops: FLOPs of a step by value of what varies.
        seconds: time of a step, in the same order.

    Returns:
        A row for each value: time over line, and in every row the largest distance of that from 1.
    """
    counts = np.array(list(flops.values()))
    # Least squares over FLOPs scaled to at most 1: with counts around 1e12 the fit is
    # ill-conditioned.
    slope, intercept = np.polyfit(counts / counts.max(), seconds, 1)
    line = (slope * counts / counts.max() + intercept).tolist()
    # The intercept takes up what does not grow with FLOPs, such as Python and kernel launches.
    worst = max(abs(time / expected - 1) for time, expected in zip(seconds, line, strict=True))
    return [
        {
            "varied": name,
            "value": value,
            "GFLOPs": flops[value] / 1e9,
            "median ms": 1000 * time,
            "expected ms": 1000 * expected,
            "ratio": time / expected,
            "worst residual": worst,
            "processes": 1,
            "cores": num_devices(),
        }
        for value, time, expected in zip(flops, seconds, line, strict=True)
    ]


def _time_steps(
    name: str, steps: Mapping[int, Step], flops: Sequence[int], *, repeats: int
) -> list[Row]:
    cases = {str(value): step for value, step in steps.items()}
    # Medians, not minima: the line then describes a typical step.
    timings = time_interleaved(cases, repeats=repeats)
    seconds = [timing.median for timing in timings.values()]
    return fit_line(name, dict(zip(steps, flops, strict=True)), seconds)


def _flops(workload: Workload) -> int:
    return workload.flops_per_token() * workload.num_targets
