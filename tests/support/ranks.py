"""Runs a test's function on several processes that form one job over gloo."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.groups import process_groups


def run_on_ranks(
    function: Callable[..., Any],
    size: int,
    *arguments: object,
    folder: Path,
    parallel: ParallelConfig | None = None,
) -> list[Any]:
    """What `function(groups, *arguments)` returns on each rank.

    Args:
        function: of a module, so that it can be named to another process.
        size: number of processes.
        arguments: passed on, pickled.
        folder: for what the ranks return.
        parallel: the layout; ranks that it leaves over are data parallel.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = (function, size, port, folder, parallel or ParallelConfig(), arguments)
    multiprocessing.start_processes(_run, args=job, nprocs=size, start_method="spawn")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(size)]


def _run(
    rank: int,
    function: Callable[[ProcessGroupCollection], Any],
    size: int,
    port: int,
    folder: Path,
    parallel: ParallelConfig,
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    try:
        with process_groups(read_environment(), parallel) as groups:
            torch.save(function(groups, *arguments), folder / f"rank{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
