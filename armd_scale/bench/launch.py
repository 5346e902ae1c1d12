"""Run a measurement on several processes of this machine that form one job."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import TrainingError
from armd_scale.parallel.environment import DistributedEnv, read_environment
from armd_scale.parallel.process_groups import process_groups

Measurement = Callable[[DistributedEnv, ProcessGroupCollection], Any]


def run_on_ranks(measure: Measurement, num_ranks: int, parallel: ParallelConfig) -> list[Any]:
    """Run `measure` on fresh processes and return its results in the order of ranks.

    Args:
        measure: a module-level function, or a partial of one, because it is pickled.
        num_ranks: number of processes; on CUDA each needs a device.
        parallel: the layout; data parallelism takes the remaining ranks.

    Raises:
        TrainingError: there are fewer GPUs than processes.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < num_ranks:
        raise TrainingError(
            f"every process needs its own GPU (got {torch.cuda.device_count()} GPUs for "
            f"{num_ranks} processes): lower --ranks, or set CUDA_VISIBLE_DEVICES= to measure on CPU"
        )
    # torchrun's own launcher, so that ranks read their environment as they do in training. spawn,
    # because a forked child could not use the CUDA context of its parent.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id="bench",
        start_method="spawn",
    )
    results = elastic_launch(config, _join_and_measure)(measure, parallel)
    return [results[rank] for rank in range(num_ranks)]


def _join_and_measure(measure: Measurement, parallel: ParallelConfig) -> Any:
    environment = read_environment()
    with process_groups(environment, parallel) as groups:
        return measure(environment, groups)
