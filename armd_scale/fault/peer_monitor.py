"""Peer side of failure detection: if a rank dies or hangs, every other rank names it and exits.

Why torch.distributed is not enough: when a rank is killed inside a collective, gloo's peers see a
closed connection without a name, and NCCL's peers wait until the collective times out (30 minutes).

Death. Every rank keeps one idle TCP connection to rank 0, separate from those of torch.distributed,
with a sleeping thread at either end. The kernel closes the connection when the process ends, in
whatever way, and answers keepalive probes as long as the machine is up. So a busy rank cannot be
mistaken for a dead one, even if it computes for minutes in C code that holds the GIL.

Hangs. Given a `Watchdog` with a timeout, every rank also sends heartbeats with its current phase. A
rank that is stopped, or stays in one phase for longer than the timeout, is declared hung. The
timeout (30 minutes by default) must exceed every legitimate phase, such as one checkpoint save.

Rank 0 reads all connections and sends the outcome of the job to every rank. If rank 0 itself dies,
the ranks see their connections close. Limitation: a rank whose main thread holds the GIL learns of
another rank's death only when it releases it.
"""

import faulthandler
import ipaddress
import itertools
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from armd_scale.errors import TrainingError
from armd_scale.fault.coordinator import FailureDetector, RendezvousInfo
from armd_scale.fault.heartbeat import (
    JobOutcome,
    heartbeat_interval,
    peer_hung_message,
    peer_lost_message,
)
from armd_scale.fault.json_socket import (
    close_in_forked_children,
    enable_keepalive,
    encode_line,
    encode_registration,
    receive_lines,
)
from armd_scale.fault.watchdog import Watchdog
from armd_scale.log import get_logger
from armd_scale.parallel.environment import DistributedEnv

EXIT_PEER_LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may well succeed when run again

# Distinguishes the store keys of consecutive jobs in one process group. All ranks enter
# `monitor_peers` equally often, so they count alike.
_instance_counter = itertools.count()


@dataclass(frozen=True, kw_only=True)
class FailureTimeouts:
    """Timeouts of failure detection, in seconds.

    A killed process is named at once; the others exit at most `exit_grace_seconds` later.
    """

    keepalive_timeout_seconds: int = 60
    """Silence of a machine's kernel after which its ranks are lost. Shorter values would end jobs
    whose network recovers: a switch that restarts its ports takes up to 50 s."""
    diagnosis_timeout_seconds: float = 10.0
    """Wait for an outcome after a failed collective. A killed process with much memory takes
    seconds to close its connections, and closes them in no fixed order."""
    exit_grace_seconds: float = 5.0
    """Time for the main thread to exit by itself after another rank is lost."""
    cleanup_timeout_seconds: float = 30.0
    """Additional time for cleanup after an exception of this rank: destroying process groups can
    hang when the peers no longer answer."""


@contextmanager
def monitor_peers(
    environment: DistributedEnv,
    *,
    timeouts: FailureTimeouts | None = None,
    watchdog: Watchdog | None = None,
) -> Iterator[None]:
    """End this process when another rank is lost; let all ranks leave the block together.

    Wrap it around the job's work, inside the process groups; every rank must enter it. Within
    seconds of a loss, all ranks log one message that names the lost rank and exit with
    `EXIT_PEER_LOST`: through `SystemExit` if the main thread gets here because a collective failed,
    and through `os._exit` from a background thread if it does not. An exception of this rank is
    re-raised unchanged after the other ranks have been told. A job of one process starts no thread,
    unless its watchdog has a timeout.

    Args:
        environment: rank, world size, and the address of rank 0.
        timeouts: the defaults of `FailureTimeouts` if None.
        watchdog: tracks the phases of this rank; hangs are detected if its timeout is not 0.

    Raises:
        TrainingError: rank 0 cannot be reached.
        SystemExit: another rank is lost.
    """
    if watchdog is not None and watchdog.hang_timeout_seconds == 0:
        watchdog = None
    if environment.world_size == 1 and watchdog is None:
        yield
        return
    client = _connect(environment, timeouts or FailureTimeouts(), watchdog)
    try:
        yield
    except BaseException as error:
        # Alone in the job there is nobody to tell, and the process may live on (a notebook, a
        # test): report_failure would end it some seconds after its error.
        if environment.world_size == 1:
            client.close()
        else:
            client.report_failure(error)
        raise
    client.close()


def _connect(
    environment: DistributedEnv, timeouts: FailureTimeouts, watchdog: Watchdog | None
) -> "_PeerClient":
    """Start the detector on rank 0, publish its port in torch.distributed's store, and register."""
    store = distributed_c10d._get_default_store()
    key = f"peer_monitor/{next(_instance_counter)}"
    name = f"rank {environment.rank} (process {os.getpid()} on {environment.host})"
    hang_timeout_seconds = None if watchdog is None else watchdog.hang_timeout_seconds
    detector = None
    if environment.is_rank0:
        detector = FailureDetector(
            environment.world_size,
            address=_listening_address(environment),
            keepalive_timeout_seconds=timeouts.keepalive_timeout_seconds,
            hang_timeout_seconds=hang_timeout_seconds,
        )
        info = RendezvousInfo(port=detector.port, token=detector.token, rank0_name=name)
        store.set(key, json.dumps(asdict(info)))
    info = RendezvousInfo(**json.loads(store.get(key)))
    address = (environment.master_addr, info.port)
    try:
        connection = socket.create_connection(address, timeout=timeouts.keepalive_timeout_seconds)
    except OSError as error:
        raise TrainingError(
            f"every rank must be able to reach rank 0, but {name} cannot connect to port "
            f"{address[1]} of {address[0]} ({error}): open the ports between the job's machines"
        ) from error
    # With hang detection, rank 0 announces regularly that it is alive, so silence means that rank 0
    # itself hangs. Without it an idle connection is normal, and reads must wait forever.
    connection.settimeout(hang_timeout_seconds)
    close_in_forked_children(connection)
    enable_keepalive(connection, timeout_seconds=timeouts.keepalive_timeout_seconds)
    connection.sendall(encode_registration(info.token, rank=environment.rank, name=name))
    return _PeerClient(connection, info.rank0_name, timeouts, detector=detector, watchdog=watchdog)


def _listening_address(environment: DistributedEnv) -> str:
    """Return the address at which the other ranks reach rank 0; empty if it is a host name.

    A name may have several addresses, and Debian maps a machine's own to 127.0.1.1, which other
    machines cannot reach: then the detector listens everywhere.
    """
    if environment.world_size == 1 or environment.master_addr == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(environment.master_addr))
    except ValueError:
        return ""


class _PeerClient:
    """This rank's end of its connection to the detector.

    The main thread reports the end of the block or an error; a listener thread waits for the
    outcome; with a watchdog, a third thread sends heartbeats.
    """

    def __init__(
        self,
        connection: socket.socket,
        rank0_name: str,
        timeouts: FailureTimeouts,
        *,
        detector: FailureDetector | None,
        watchdog: Watchdog | None,
    ) -> None:
        self._connection, self._rank0_name, self._timeouts = connection, rank0_name, timeouts
        self._detector, self._watchdog = detector, watchdog
        self._send_lock = threading.Lock()
        self._outcome_received = threading.Event()
        self._failure: str | None = None
        self._own_error: BaseException | None = None
        self._log_lock = threading.Lock()
        self._has_logged = False
        threading.Thread(target=self._listen, daemon=True, name="peer-monitor").start()
        if watchdog is not None:
            thread = threading.Thread(
                target=self._send_heartbeats, args=(watchdog,), daemon=True, name="heartbeat"
            )
            thread.start()

    def close(self) -> None:
        """Report that this rank has finished, and wait until all ranks have.

        Without the wait an early rank would destroy its process groups while others still use
        them, and rank 0 would take the detector down with it.
        """
        self._send(finished=True)
        self._outcome_received.wait()
        if self._failure is not None:
            self._log_once()
            raise SystemExit(EXIT_PEER_LOST)
        if self._detector is not None:
            self._detector.wait_until_finished()

    def report_failure(self, error: BaseException) -> None:
        """Report this rank's own error to the detector.

        Raises:
            SystemExit: the error is the consequence of another rank's death.
        """
        # A failed collective is usually a symptom. Blame another rank if the detector soon names
        # one; otherwise the network really broke here, and the error is this rank's own.
        if _is_collective_error(error) and self._outcome_received.wait(
            self._timeouts.diagnosis_timeout_seconds
        ):
            self._log_once()
            raise SystemExit(EXIT_PEER_LOST) from error
        self._own_error = error
        self._send(failed=traceback.format_exception_only(error)[-1].strip())
        self._outcome_received.wait(self._timeouts.exit_grace_seconds)

    def _send(self, **content: Any) -> None:
        # The main and the heartbeat thread both send: the lock keeps their lines apart. A broken
        # connection is diagnosed by the listener thread.
        with suppress(OSError), self._send_lock:
            self._connection.sendall(encode_line(**content))

    def _send_heartbeats(self, watchdog: Watchdog) -> None:
        interval = heartbeat_interval(watchdog.hang_timeout_seconds)
        while not self._outcome_received.wait(interval):
            self._send(heartbeat=asdict(watchdog.heartbeat()))

    def _listen(self) -> None:
        """Wait for the outcome; if it is a failure, make sure that this process ends."""
        outcome = self._receive_outcome()
        self._failure = outcome.failure
        self._outcome_received.set()
        if outcome.is_hung and self._watchdog is not None:
            self._watchdog.dump_stacks()
        if outcome.failure is None:
            self._connection.close()
            return
        # If the failed rank reports its own error, wait with this message: this rank may be about
        # to raise the same error (a bad recipe fails on all), and should then show that alone.
        if outcome.is_gone:
            self._log_once()
        time.sleep(self._timeouts.exit_grace_seconds)
        # Still here: the main thread is stuck, in a collective or in cleanup. Only os._exit ends a
        # process from another thread, so whatever must reach the user is written before it.
        if self._own_error is not None:
            time.sleep(self._timeouts.cleanup_timeout_seconds)
            traceback.print_exception(self._own_error)
            os._exit(1)
        self._log_once()
        os._exit(EXIT_PEER_LOST)

    def _receive_outcome(self) -> JobOutcome:
        """Return the outcome that rank 0 sends, or the conclusion from its silence."""
        rank0 = self._rank0_name
        try:
            for line in receive_lines(self._connection):
                if "outcome" in (content := json.loads(line)):
                    return JobOutcome(**content["outcome"])
        except TimeoutError:
            assert self._watchdog is not None, "the connection has a timeout only with a watchdog"
            seconds = self._watchdog.hang_timeout_seconds
            message = peer_hung_message(rank0, "unknown (no sign of life)", seconds)
            return JobOutcome(failure=message, is_gone=True, is_hung=True)
        except (OSError, ValueError):
            pass
        return JobOutcome(failure=peer_lost_message(rank0), is_gone=True)

    def _log_once(self) -> None:
        with self._log_lock:
            if self._has_logged:
                return
            self._has_logged = True
            # Logging blocks if the disk hangs (a dead NFS server). This timer ends the process
            # then; it runs in C and needs neither the GIL nor a Python thread.
            faulthandler.dump_traceback_later(
                2 * self._timeouts.exit_grace_seconds, exit=True, file=2
            )
            get_logger(__name__).critical(self._failure)
            faulthandler.cancel_dump_traceback_later()


def _is_collective_error(error: BaseException | None) -> bool:
    """Return whether a collective or the store failed, possibly as the cause of `error`.

    gloo raises a plain RuntimeError, whose text names the source file that lost the connection.
    """
    while error is not None:
        is_gloo_error = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
        if is_gloo_error or isinstance(error, dist.DistError):
            return True
        error = error.__cause__ or error.__context__
    return False
