"""Runs a function of a test on several ranks, processes that form one job over gloo."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import torch

from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups
from tests.support.processes import FORKSERVER


def run_on_ranks(
    function: Callable[..., Any],
    size: int,
    *arguments: object,
    parallel: ParallelConfig | None = None,
) -> list[Any]:
    """Return the result of `function(groups, *arguments)` on each rank.

    Args:
        function: a module-level function, so that other processes can import it.
        size: number of ranks.
        arguments: passed to the function, pickled.
        parallel: the layout; the data parallel size follows from `size`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = (size, port, parallel or ParallelConfig(), function, arguments)
    futures = [_rank_pool(size).submit(_run_rank, rank, *job) for rank in range(size)]
    try:
        return [future.result(timeout=240) for future in futures]
    except BaseException:
        # The other ranks may wait forever for the failed one, and pytest for them at its end.
        for process in multiprocessing.active_children():
            process.kill()
        _rank_pool.cache_clear()
        raise


@cache
def _rank_pool(size: int) -> ProcessPoolExecutor:
    """Return a pool with one process per rank, kept for later tests.

    A rank blocks until all others have joined the job, so each process runs exactly one rank.
    """
    return ProcessPoolExecutor(size, mp_context=FORKSERVER)


def _run_rank(
    rank: int,
    size: int,
    port: int,
    parallel: ParallelConfig,
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> Any:
    torch.set_num_threads(1)
    variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with process_groups(read_environment(), parallel) as groups:
        return function(groups, *arguments)
