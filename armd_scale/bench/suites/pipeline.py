"""Time of training steps through the real schedule, on one process and in pipelines."""

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
from armd_scale.bench.suites.step import Step, Workload, compute_dtype, mean_loss_spec, random_batch
from armd_scale.bench.table import Row
from armd_scale.bench.timing import synchronize
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

# Many small layers, so that the costs of four stages differ by at most 4 %, head included.
_LAYERS = resolve_model(
    ModelConfig(layers=16, hidden=256, ffn_hidden=1024, heads=4, vocab_size=4096)
)
WORKLOAD = Workload(model=_LAYERS, seq_length=128, micro_batch=1)


def scheduled_step(
    workload: Workload, groups: ProcessGroupCollection, *, micro_batches: int, device: torch.device
) -> Step:
    """Return a step of several micro-batches on this process's pipeline stage."""
    parallel = ParallelConfig(pipeline=groups.pp.size())
    dtype, length = compute_dtype(device), workload.seq_length
    config = transformer_config(workload.model, parallel, dtype=dtype)
    (stage,) = stages_of_rank(workload.model, parallel, seq_length=length, rank=groups.pp.rank())
    chunk = ArmdModel(workload.model, config, groups=groups, stage=stage)
    init_weights(chunk, seed=0)
    network = ModelChunks([chunk]).to(device)
    batch = random_batch("random", workload).to(device)
    # The schedule adds up the losses of the micro-batches, so each gets its share of the mean.
    micro_batch = TrainMicroBatch(batch, mean_loss_spec(batch).weights / micro_batches)

    def loss_of(output: tuple[Tensor, Tensor], micro_batch: TrainMicroBatch) -> tuple[Tensor, None]:
        return output[0], None

    def step() -> None:
        network.zero_grad(set_to_none=True)
        run_micro_batches(
            # The network itself, not an engine: no optimizer, and gradients are not reduced.
            make_schedule_chunks(network, network),
            [micro_batch] * micro_batches,
            loss_fn=loss_of,
            groups=groups,
        )

    return step


def time_stages(
    *,
    workload: Workload = WORKLOAD,
    stages: Sequence[int] = (1, 2, 4),
    micro_batches: int = 8,
    repeats: int = 5,
) -> list[Row]:
    """Time one network in 1F1B pipelines of several lengths, one job after another.

    Every process computes on one thread. Stages of equal cost, on processes with a core each, would
    take (m + p - 1) / (m p) of the time of one process, for m micro-batches and p stages; with
    fewer cores than processes at best 1 / cores of it.

    Returns:
        A row for each number of stages, like those of `scaling.fit_line`.
    """
    measure = partial(time_on_rank, workload=workload, micro_batches=micro_batches, repeats=repeats)
    seconds = {}
    for num_stages in stages:
        by_rank = run_on_ranks(measure, num_stages, ParallelConfig(pipeline=num_stages))
        # A step ends with a barrier, so the ranks' times hardly differ.
        seconds[num_stages] = max(by_rank)
    targets = micro_batches * workload.num_targets
    return table(seconds, micro_batches=micro_batches, flops=workload.flops_per_token() * targets)


def table(seconds: Mapping[int, float], *, micro_batches: int, flops: int) -> list[Row]:
    """Compare the measured time of each number of stages with what 1F1B predicts.

    Args:
        seconds: time of a step by number of stages; the shortest pipeline is the reference.
        micro_batches: micro-batches of a step.
        flops: FLOPs of a step.

    Returns:
        A row for each; the worst residual is over those whose processes have a core each.
    """
    shortest = min(seconds)
    # The share of one stage is 1; if it was not measured, the shortest pipeline implies its time.
    one_process = seconds[shortest] / _time_share(shortest, micro_batches)
    expected = {stages: one_process * _time_share(stages, micro_batches) for stages in seconds}
    cores = num_devices()
    residuals = [abs(seconds[p] / expected[p] - 1) for p in seconds if p <= cores]
    return [
        {
            "varied": "stages",
            "value": num_stages,
            "GFLOPs": flops / 1e9,
            "median ms": 1000 * measured,
            "expected ms": 1000 * expected[num_stages],
            "ratio": measured / expected[num_stages],
            "worst residual": max(residuals, default=0.0),
            "processes": num_stages,
            "cores": cores,
        }
        for num_stages, measured in seconds.items()
    ]


def num_devices() -> int:
    """Return how many processes can compute at once: GPUs, or cores that this process may use."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0))


def _time_share(stages: int, micro_batches: int) -> float:
    """Time of a step over that of one process: m + p - 1 turns, each 1 / (m p) of the work."""
    return (micro_batches + stages - 1) / (micro_batches * stages)


def time_on_rank(
    environment: DistributedEnv,
    groups: ProcessGroupCollection,
    *,
    workload: Workload,
    micro_batches: int,
    repeats: int,
) -> float:
    """Return the median seconds of a step, from a barrier before it to a barrier after it."""
    # With more threads a single process would use all cores, and stages could not be faster.
    torch.set_num_threads(1)
    step = scheduled_step(workload, groups, micro_batches=micro_batches, device=environment.device)
    # Warm-up: allocates memory, and sets up the connections between stages.
    step()
    seconds = []
    for _ in range(repeats):
        synchronize()
        # All ranks start together, and the time ends when the slowest one is done.
        dist.barrier()
        start = time.perf_counter()
        step()
        synchronize()
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
