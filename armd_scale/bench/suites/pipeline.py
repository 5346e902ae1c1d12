"""Training steps of several micro-batches through the real schedule: alone, and in a pipeline."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.bench.launch import run_on_ranks
from armd_scale.bench.suites.step import Shape, Step, batch_under, compute_dtype, mean_of_targets
from armd_scale.bench.table import Row
from armd_scale.bench.timing import wait
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import TrainMicroBatch
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.pipeline.partition import stages_of_rank
from armd_scale.parallel.pipeline.schedule import run_micro_batches
from armd_scale.train.schedule_chunks import make_schedule_chunks

# Many small layers, so that four stages cost the same to 4 %, the head included.
_LAYERS = resolve_model(
    ModelConfig(layers=16, hidden=256, ffn_hidden=1024, heads=4, vocab_size=4096)
)
SHAPE = Shape(model=_LAYERS, seq_length=128, micro_batch=1)


def scheduled_step(
    shape: Shape, groups: ProcessGroupCollection, *, micro_batches: int, device: torch.device
) -> Step:
    """Forward and backward of some micro-batches on this process's stage of the network."""
    parallel = ParallelConfig(pipeline=groups.pp.size())
    dtype, length = compute_dtype(device), shape.seq_length
    config = transformer_config(shape.model, parallel, dtype=dtype)
    (stage,) = stages_of_rank(shape.model, parallel, seq_length=length, rank=groups.pp.rank())
    part = ArmdModel(shape.model, config, groups=groups, stage=stage)
    init_weights(part, seed=0)
    network = ModelChunks([part]).to(device)
    batch = batch_under("random", shape).to(device)
    lesson = TrainMicroBatch(batch, mean_of_targets(batch).weights / micro_batches)

    def loss_of(output: tuple[Tensor, Tensor], lesson: TrainMicroBatch) -> tuple[Tensor, None]:
        return output[0], None

    def step() -> None:
        network.zero_grad(set_to_none=True)
        run_micro_batches(
            make_schedule_chunks(network, network),
            [lesson] * micro_batches,
            loss_fn=loss_of,
            groups=groups,
        )

    return step


def time_stages(
    *,
    shape: Shape = SHAPE,
    stages: Sequence[int] = (1, 2, 4),
    micro_batches: int = 8,
    runs: int = 5,
) -> list[Row]:
    """Times one network in pipelines of several lengths, 1F1B, one job after another.

    Every process computes on one thread. Stages of equal cost, and processes that have a core each,
    would take (m + p - 1) / m / p of the time of one process, m the micro-batches and p the stages;
    with fewer cores than processes no better than 1 / cores of it.

    Returns:
        A row for each number of stages, like those of `scaling.fitted`.
    """
    seconds = {}
    for number in stages:
        measure = partial(time_on_rank, shape=shape, micro_batches=micro_batches, runs=runs)
        by_rank = run_on_ranks(measure, number, ParallelConfig(pipeline=number))
        seconds[number] = max(by_rank)  # all wait for one another, so they hardly differ
    targets = micro_batches * shape.micro_batch * shape.seq_length
    return table(seconds, micro_batches=micro_batches, flops=shape.flops_per_token() * targets)


def table(seconds: Mapping[int, float], *, micro_batches: int, flops: int) -> list[Row]:
    """Measured time of each number of stages, beside what 1F1B makes of the shortest pipeline's.

    Args:
        seconds: of a step, by the number of stages.
        micro_batches: of a step.
        flops: of a step.

    Returns:
        A row for each; the worst residual is of those whose processes have a core each.
    """
    first = min(seconds)
    alone = seconds[first] / _share(first, micro_batches)
    ideal = {number: alone * _share(number, micro_batches) for number in seconds}
    cores = places()
    off = [abs(seconds[p] / ideal[p] - 1) for p in seconds if p <= cores]
    return [
        {
            "grows": "stages",
            "to": number,
            "10^9 operations": flops / 1e9,
            "median ms": 1000 * taken,
            "expected ms": 1000 * ideal[number],
            "ratio": taken / ideal[number],
            "worst residual": max(off, default=0.0),
            "processes": number,
            "cores": cores,
        }
        for number, taken in seconds.items()
    ]


def places() -> int:
    """How many processes can compute at a time: GPUs, or cores that this process may use."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0))


def _share(stages: int, micro_batches: int) -> float:
    """Time of a step as a share of one process's: m + p - 1 turns, each 1 / (m p) of the work."""
    return (micro_batches + stages - 1) / (micro_batches * stages)


def time_on_rank(
    environment: DistributedEnv,
    groups: ProcessGroupCollection,
    *,
    shape: Shape,
    micro_batches: int,
    runs: int,
) -> float:
    """Median seconds from when all ranks begin a step until all have ended it."""
    torch.set_num_threads(1)
    step = scheduled_step(shape, groups, micro_batches=micro_batches, device=environment.device)
    step()
    seconds = []
    for _ in range(runs):
        wait()
        dist.barrier()
        began = time.perf_counter()
        step()
        wait()
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
