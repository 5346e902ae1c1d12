"""Runs a test's function on several processes that form one job over gloo."""

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


def run_on_ranks(
    function: Callable[..., Any],
    size: int,
    *arguments: object,
    parallel: ParallelConfig | None = None,
) -> list[Any]:
    """What `function(groups, *arguments)` returns on each rank.

    Args:
        function: of a module, so that it can be named to another process.
        size: number of processes.
        arguments: passed on, pickled.
        parallel: the layout; ranks that it leaves over are data parallel.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = (size, port, parallel or ParallelConfig(), function, arguments)
    ranks = [_processes(size).submit(_run, rank, *job) for rank in range(size)]
    try:
        return [rank.result(timeout=120) for rank in ranks]
    except BaseException:
        # The others may wait for the failed one for ever, and with them the end of the tests.
        for process in multiprocessing.active_children():
            process.kill()
        _processes.cache_clear()
        raise


@cache
def _processes(size: int) -> ProcessPoolExecutor:
    """As many processes as ranks, kept for the next test: starting them takes seconds.

    A rank waits for the others before it does anything, so each process takes exactly one.
    """
    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn"))


def _run(
    rank: int,
    size: int,
    port: int,
    parallel: ParallelConfig,
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> Any:
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    with process_groups(read_environment(), parallel) as groups:
        return function(groups, *arguments)
