"""Whether data keep up: tokens that the loader makes, beside tokens that training uses up."""

import statistics
import time
from contextlib import closing
from pathlib import Path

from armd_scale.bench.suites.step import (
    Shape,
    batch_under,
    compute_dtype,
    network,
    step_of,
)
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.config.load import load_recipe
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.loader import PREFETCH_FACTOR, DataParallelShare, MicroBatchLoader
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups
from armd_scale.train.data import open_samples, resolve_from_shards


def compare_loading(*, recipe: Path, seconds: float = 2, runs: int = 5) -> list[Row]:
    """Times the loader of a recipe, its workers and order included, and forward and backward pass.

    Both at the micro-batch of the recipe, on one process. Training's time is that of shuffled
    tokens on two streams; what the optimizer takes is left out, so the loader must be quicker here
    than it need be.

    Args:
        recipe: of a run whose shards exist.
        seconds: how long the loader runs at least, each time.
        runs: how often each is timed.

    Returns:
        One row: targets a second of both, and how many times as fast the loader is. Without workers
        the same process does both in turn, and the inverse of the ratio is what loading adds to the
        time of training.
    """
    asked = resolve_from_shards(load_recipe(recipe))
    train, data = asked.train, asked.data
    shape = Shape(model=asked.model, seq_length=data.seq_length, micro_batch=train.micro_batch)
    tokens = shape.micro_batch * shape.seq_length
    stream = open_samples(asked)
    share = DataParallelShare(micro_batch=train.micro_batch, global_batch=train.micro_batch)
    batches = MicroBatchLoader(stream, share, workers=data.workers)
    ahead = data.workers * PREFETCH_FACTOR
    rates = [batches_per_second(batches, seconds, ahead=ahead) for _ in range(runs)]
    supply = statistics.median(rates)
    demand = 1 / _step_seconds(shape, runs)
    return [
        {
            "workers": data.workers,
            "micro-batch": train.micro_batch,
            "loader batches/s": supply,
            "loader targets/s": round(supply * tokens),
            "training targets/s": round(demand * tokens),
            "ratio": supply / demand,
        }
    ]


def batches_per_second(batches: MicroBatchLoader, seconds: float, *, ahead: int) -> float:
    """How quickly batches come, once workers are up and `ahead` batches made early are gone."""
    with closing(iter(batches)) as made:
        for _ in range(1 + ahead):
            next(made)
        began, count, taken = time.perf_counter(), 0, 0.0
        while taken < seconds:
            next(made)
            count, taken = count + 1, time.perf_counter() - began
    return count / taken


def _step_seconds(shape: Shape, runs: int) -> float:
    """Median time of forward and backward pass."""
    here = read_environment()
    with process_groups(here, ParallelConfig()) as groups:
        model = network(shape.model, shape, groups, dtype=compute_dtype(here.device))
        step = step_of(model.to(here.device), batch_under("random", shape).to(here.device))
        return time_interleaved({"step": step}, runs=runs)["step"].median
