"""Whether the data loader keeps up: its targets per second compared with those of training."""

import statistics
import time
from contextlib import closing
from pathlib import Path

from armd_scale.bench.suites.step import (
    Workload,
    build_model,
    compute_dtype,
    random_batch,
    training_step,
)
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.config.load import load_recipe
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.loader import PREFETCH_FACTOR, DataParallelShare, MicroBatchLoader
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups
from armd_scale.train.data import open_samples, resolve_from_shards


def compare_loading(*, recipe: Path, seconds: float = 2, repeats: int = 5) -> list[Row]:
    """Time the loader of a recipe (workers and order included), and forward and backward pass.

    Both run at the recipe's micro-batch, on one process. Training is timed on random orders, which
    run two streams, and without the optimizer, so the ratio is a lower bound.

    Args:
        recipe: recipe of a run whose shards exist.
        seconds: minimum length of each run of the loader.
        repeats: timed repeats of each.

    Returns:
        One row: targets per second of both, and how many times as fast the loader is. Without
        workers one process does both in turn, and the inverse of the ratio is the time that loading
        adds to training.
    """
    resolved = resolve_from_shards(load_recipe(recipe))
    train, data = resolved.train, resolved.data
    workload = Workload(
        model=resolved.model, seq_length=data.seq_length, micro_batch=train.micro_batch
    )
    targets = workload.num_targets
    stream = open_samples(resolved)
    # A global batch of one micro-batch: this process is the only reader.
    share = DataParallelShare(micro_batch=train.micro_batch, global_batch=train.micro_batch)
    batches = MicroBatchLoader(stream, share, workers=data.workers)
    prefetched = data.workers * PREFETCH_FACTOR
    rates = [batches_per_second(batches, seconds, prefetched=prefetched) for _ in range(repeats)]
    loader_rate = statistics.median(rates)
    # The loader has stopped its workers by now, so the two do not compete for cores.
    training_rate = 1 / _step_seconds(workload, repeats)
    return [
        {
            "workers": data.workers,
            "micro-batch": train.micro_batch,
            "loader batches/s": loader_rate,
            "loader targets/s": round(loader_rate * targets),
            "training targets/s": round(training_rate * targets),
            "ratio": loader_rate / training_rate,
        }
    ]


def batches_per_second(batches: MicroBatchLoader, seconds: float, *, prefetched: int) -> float:
    """Return the rate of batches after the first one and `prefetched` more.

    Workers start with the first batch, and have the prefetched ones ready while it is waited for;
    these would make the loader look faster than it is.
    """
    with closing(iter(batches)) as iterator:
        for _ in range(1 + prefetched):
            next(iterator)
        start, count, elapsed = time.perf_counter(), 0, 0.0
        while elapsed < seconds:
            next(iterator)
            count, elapsed = count + 1, time.perf_counter() - start
    return count / elapsed


def _step_seconds(workload: Workload, repeats: int) -> float:
    """Return the median time of forward and backward pass."""
    environment = read_environment()
    device = environment.device
    with process_groups(environment, ParallelConfig()) as groups:
        network = build_model(
            workload.model, workload, groups, dtype=compute_dtype(device), device=device
        )
        step = training_step(network, random_batch("random", workload).to(device))
        return time_interleaved({"step": step}, repeats=repeats)["step"].median
