"""Wait at the start of a job until all of its processes are there.

torch.distributed waits for them in C++, where no signal is obeyed, and does not say for whom. Here
every process counts itself in the store of the job, and waits in Python for the count to be full.
"""

import itertools
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from armd_scale.errors import TrainingError
from armd_scale.log import get_logger
from armd_scale.parallel.environment import DistributedEnv

REPORT_SECONDS = 10.0
"""First report of who is missing; every further one comes after twice the time of the last."""
TIMEOUT_SECONDS = 1800.0
_CONNECT_SECONDS = 2.0
_MAX_NAMED_RANKS = 16

# Distinguishes the keys of jobs that a process joins one after another: rank 0 of such a process
# serves the same store again if the port is the same. All ranks join equally often.
_instance_counter = itertools.count()


def join_store(
    environment: DistributedEnv, stop_signal: Callable[[], int | None] = lambda: None
) -> Store:
    """Connect to the store of the job and return it when all ranks have done so.

    Args:
        environment: this process within the job.
        stop_signal: returns the number of a stop signal that was received, or None.

    Raises:
        TrainingError: rank 0 cannot serve the store, or ranks are missing after half an hour.
        SystemExit: with status 128 + N, after signal N, which is logged.
    """
    if environment.master_port is None:
        raise TrainingError(
            "MASTER_ADDR and MASTER_PORT must be set for a job of several processes (MASTER_PORT "
            "is not an integer): start with torchrun or srun, or set both"
        )
    return _Waiting(environment, environment.master_port, stop_signal).join()


class _Waiting:
    """The wait of one process."""

    def __init__(
        self, environment: DistributedEnv, port: int, stop_signal: Callable[[], int | None]
    ) -> None:
        self._environment, self._stop_signal, self._port = environment, stop_signal, port
        self._address = f"{environment.master_addr}:{port}"
        self._start, self._next_report = time.monotonic(), REPORT_SECONDS
        self._prefix = f"start/{next(_instance_counter)}"

    def join(self) -> Store:
        environment = self._environment
        # Under torchrun a process besides the ranks serves the store.
        serves = environment.is_rank0 and not environment.has_agent_store
        if not serves:
            self._wait_for_server()
        try:
            store = TCPStore(
                environment.master_addr,
                self._port,
                environment.world_size,
                serves,
                timeout=timedelta(seconds=60),
                wait_for_workers=False,
                multi_tenant=serves,
            )
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(
                f"rank {environment.rank} must be able to "
                f"{'listen on' if serves else 'use'} port {self._port} of "
                f"{environment.master_addr} ({reason}): set MASTER_PORT to a free port, the same "
                "in all processes"
            ) from error
        try:
            self._wait_for_all(store)
        except dist.DistError as error:
            raise TrainingError(
                f"rank 0 at {self._address} has ended before all ranks had started: see its log"
            ) from error
        store.set_timeout(timedelta(seconds=TIMEOUT_SECONDS))
        return store

    def _wait_for_all(self, store: Store) -> None:
        environment = self._environment
        store.set(f"{self._prefix}/{environment.rank}", environment.host)
        store.add(f"{self._prefix}/count", 1)
        while store.add(f"{self._prefix}/count", 0) < environment.world_size:
            # Rank 0 says it for all that have reached it, and each gives up in the end.
            if self._pause() and (environment.is_rank0 or self._seconds >= TIMEOUT_SECONDS):
                self._report(self._missing(store))

    def _wait_for_server(self) -> None:
        """Wait until somebody listens, by a plain connection: TCPStore would log every attempt."""
        address = (self._environment.master_addr, self._port)
        while True:
            try:
                socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
            except OSError as error:
                if self._pause():
                    self._report([0], f" ({error.strerror or error})")
            else:
                return

    def _pause(self) -> bool:
        """Wait a moment; return whether a report is due.

        Raises:
            SystemExit: a stop signal was received.
        """
        # Many ranks ask rank 0 for the count, so they ask it less often.
        time.sleep(0.1 + self._environment.world_size / 2000)
        signum = self._stop_signal()
        if signum is not None:
            get_logger(__name__).warning(
                "stopped by signal %d while waiting for other ranks at %s", signum, self._address
            )
            raise SystemExit(128 + signum)
        return self._seconds >= min(self._next_report, TIMEOUT_SECONDS)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _missing(self, store: Store) -> list[int]:
        ranks = range(self._environment.world_size)
        return [rank for rank in ranks if not store.check([f"{self._prefix}/{rank}"])]

    def _report(self, missing: list[int], reason: str = "") -> None:
        """Say who is missing.

        Raises:
            TrainingError: they have been for too long.
        """
        if not missing:  # they came between the count and the look
            return
        size = self._environment.world_size
        if self._seconds >= TIMEOUT_SECONDS:
            raise TrainingError(
                f"all {size} ranks must start within {TIMEOUT_SECONDS / 60:.0f} minutes, but "
                f"{_format_ranks(missing)} did not reach {self._address}{reason}: see the logs of "
                "these, and run the same command again"
            )
        get_logger(__name__).warning(
            "waiting for %s of %d at %s for %.0f s%s",
            _format_ranks(missing),
            size,
            self._address,
            self._seconds,
            reason,
        )
        self._next_report *= 2


def _format_ranks(ranks: list[int]) -> str:
    named = ", ".join(map(str, ranks[:_MAX_NAMED_RANKS]))
    more = len(ranks) - _MAX_NAMED_RANKS
    return f"rank{'s' if len(ranks) > 1 else ''} {named}" + (f" and {more} more" * (more > 0))
