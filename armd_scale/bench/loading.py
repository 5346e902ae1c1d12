"""Whether data keep up: tokens that the loader makes, beside tokens that training uses up."""

import itertools
import time
from contextlib import closing
from pathlib import Path

from armd_scale.bench.rows import Row
from armd_scale.bench.step import (
    Shape,
    batch_under,
    compute_dtype,
    network,
    step_of,
)
from armd_scale.bench.timing import side_by_side
from armd_scale.config.load import load_recipe
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.loader import MicroBatches, Share
from armd_scale.data.samples import open_stream
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.groups import process_groups
from armd_scale.train.inputs import with_vocabulary


def compare_loading(*, recipe: Path, num_batches: int = 400, runs: int = 5) -> list[Row]:
    """Times the loader of a recipe, its workers and order included, and forward and backward pass.

    Args:
        recipe: of a run whose shards exist.
        num_batches: micro-batches that the loader makes in a run.
        runs: how often each is timed.

    Returns:
        One row: targets a second of both, and how many times as fast the loader is.
    """
    asked = with_vocabulary(load_recipe(recipe))
    train, data = asked.train, asked.data
    shape = Shape(model=asked.model, seq_length=data.seq_length, micro_batch=train.micro_batch)
    tokens = shape.micro_batch * shape.seq_length
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        dtype = compute_dtype(environment.device)
        model = network(shape.model, shape, groups, dtype=dtype).to(environment.device)
        step = step_of(model, batch_under("random", shape).to(environment.device))
        demand = tokens / side_by_side({"step": step}, runs=runs)["step"].median
    stream = open_stream(data, order=asked.order, seed=asked.run.seed)
    share = Share(micro_batch=train.micro_batch, global_batch=train.micro_batch)
    rates = []
    for _ in range(runs):
        with closing(iter(MicroBatches(stream, share, workers=data.workers))) as batches:
            next(batches)  # the workers are up
            began = time.perf_counter()
            for _ in itertools.islice(batches, num_batches):
                pass
            rates.append(num_batches * tokens / (time.perf_counter() - began))
    supply = sorted(rates)[runs // 2]
    return [
        {
            "workers": data.workers,
            "loader targets/s": round(supply),
            "training targets/s": round(demand),
            "ratio": supply / demand,
        }
    ]
