"""Runs a measurement on several processes of this machine that form one job."""

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


def run_on_ranks(measure: Measurement, ranks: int, parallel: ParallelConfig) -> list[Any]:
    """What `measure` returns on each of `ranks` fresh processes, in the order of their ranks.

    Args:
        measure: a function of a module (or a partial of one), so that it can be pickled.
        ranks: number of processes; on CUDA as many devices are needed.
        parallel: the layout; data parallelism takes the ranks that are left over.

    Raises:
        TrainingError: there are fewer devices.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < ranks:
        raise TrainingError(
            f"every process needs a GPU of its own, and this machine has "
            f"{torch.cuda.device_count()} for {ranks}: lower --ranks, or hide the GPUs with "
            "CUDA_VISIBLE_DEVICES= to measure on CPU"
        )
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id="bench",
        start_method="spawn",
    )
    found = elastic_launch(config, _join_and_measure)(measure, parallel)
    return [found[rank] for rank in range(ranks)]


def _join_and_measure(measure: Measurement, parallel: ParallelConfig) -> Any:
    environment = read_environment()
    with process_groups(environment, parallel) as groups:
        return measure(environment, groups)
