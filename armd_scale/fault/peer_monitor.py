"""Notices that a process of the job is gone, names it, and ends the others.

A process that is killed takes its part of a collective with it. gloo's peers then see a closed
connection, without a name; NCCL's wait for as long as a collective may take. So every process keeps
one idle TCP connection to rank 0, apart from those of torch.distributed, with a thread asleep at
either end. The kernel closes it as soon as the process ends, in whatever way, and answers keepalive
probes for as long as the process lives. There are no beats that a busy process could miss: one that
computes for minutes, even in C code that holds the GIL, is not taken for dead, and a lost machine
is told from a slow one.

A process that lives and does nothing is another matter. Where the job gives a `Pulse`, every
process tells rank 0 what it is doing, and one that is stopped, or has been doing the same for as
long as the pulse allows, is lost as well; that is long enough for no busy process to be meant.

Rank 0 reads all connections and tells everyone what it sees. Rank 0 being gone needs no telling.
What is not seen at once: while a process holds the GIL, it cannot hear that another is gone.
"""

import faulthandler
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
    HeartbeatSource,
    beat_interval,
    peer_hung_message,
    peer_lost_message,
)
from armd_scale.fault.json_socket import enable_keepalive, message, receive_lines
from armd_scale.log import get_logger
from armd_scale.parallel.environment import DistributedEnv

EXIT_PEER_LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may well succeed when run again

_instance_counter = itertools.count()


@dataclass(frozen=True, kw_only=True)
class FailureTimeouts:
    """How long to wait for what, in seconds.

    A killed process is named at once; the others are gone `parting` later at the latest.
    """

    keepalive_timeout_seconds: int = 60
    """Silence of a machine's kernel after which its processes are lost; shorter would end jobs
    whose network recovers (a switch that restarts its ports takes up to 50 s)."""
    diagnosis_timeout_seconds: float = 10.0
    """Wait for a name when a collective has failed: a killed process with much memory takes
    seconds to close its connections, and not in a fixed order."""
    exit_grace_seconds: float = 5.0
    """What the main thread is given to end by itself once another process is lost."""
    cleanup_timeout_seconds: float = 30.0
    """What the main thread is given to end after an error of its own: groups can hang as they are
    destroyed when other processes no longer answer."""


@contextmanager
def monitor_peers(
    environment: DistributedEnv,
    *,
    patience: FailureTimeouts | None = None,
    pulse: HeartbeatSource | None = None,
) -> Iterator[None]:
    """Ends this process when another of the job is lost; all leave the block together.

    Goes around the job's work, inside the process groups; every process enters it. Within seconds
    of a loss, all log one sentence that names the lost process and exit with `LOST_STATUS`: by
    `SystemExit` where the main thread gets here because a collective failed, from a thread where it
    does not. An exception of this process's own is raised as it is, after the others have been told
    of it; those that raise one too end in their own. A job of one process starts nothing, unless
    its pulse is watched.

    Raises:
        TrainingError: rank 0 cannot be reached.
        SystemExit: another process is lost.
    """
    if pulse is not None and pulse.hang_timeout_seconds == 0:
        pulse = None
    if environment.world_size == 1 and pulse is None:
        yield
        return
    member = _join(environment, patience or FailureTimeouts(), pulse)
    try:
        yield
    except BaseException as error:
        member.report_failure(error)
        raise
    member.close()


def _join(
    environment: DistributedEnv, patience: FailureTimeouts, pulse: HeartbeatSource | None
) -> "_PeerClient":
    """Meets at rank 0, whose address goes round through torch.distributed's own store."""
    store = distributed_c10d._get_default_store()
    key = f"liveness/{next(_instance_counter)}"
    who = f"rank {environment.rank} (process {os.getpid()} on {environment.host})"
    roll = None
    if environment.is_rank0:
        hang = None if pulse is None else pulse.hang_timeout_seconds
        roll = FailureDetector(
            environment.world_size,
            silent=patience.keepalive_timeout_seconds,
            hang_timeout_seconds=hang,
        )
        store.set(key, message(port=roll.port, token=roll.token, who=who).decode())
    invitation = RendezvousInfo(**json.loads(store.get(key)))
    address = (environment.master_addr, invitation.port)
    try:
        connection = socket.create_connection(address, timeout=patience.keepalive_timeout_seconds)
    except OSError as error:
        raise TrainingError(
            f"every process must reach rank 0, and {who} got no connection to port {address[1]} of "
            f"{address[0]} ({error}): open the ports between the job's machines"
        ) from error
    # Rank 0 says that it lives, where beats are wanted; a thread that waits for it may time out.
    connection.settimeout(None if pulse is None else pulse.hang_timeout_seconds)
    enable_keepalive(connection, timeout_seconds=patience.keepalive_timeout_seconds)
    connection.sendall(message(token=invitation.token, rank=environment.rank, who=who))
    return _PeerClient(connection, invitation, patience, roll=roll, pulse=pulse)


class _PeerClient:
    """This process's end of its connection: the main thread speaks, a thread of its own listens.

    Another one beats, where there is a pulse.
    """

    def __init__(
        self,
        connection: socket.socket,
        invitation: RendezvousInfo,
        patience: FailureTimeouts,
        *,
        roll: FailureDetector | None,
        pulse: HeartbeatSource | None,
    ) -> None:
        self._connection, self._invitation, self._patience = connection, invitation, patience
        self._roll, self._pulse = roll, pulse
        self._speaking = threading.Lock()
        self._verdict_received = threading.Event()
        self._lost: str | None = None
        self._own_error: BaseException | None = None
        self._log_lock = threading.Lock()
        self._has_logged = False
        threading.Thread(target=self._listen, daemon=True, name="liveness").start()
        if pulse is not None:
            threading.Thread(target=self._beat, args=(pulse,), daemon=True, name="pulse").start()

    def close(self) -> None:
        """Waits until all have come to their end."""
        self._send(leaving=True)
        self._verdict_received.wait()
        if self._lost is not None:
            self._log_once()
            raise SystemExit(EXIT_PEER_LOST)
        if self._roll is not None:
            self._roll.finish()

    def report_failure(self, error: BaseException) -> None:
        """Returns when the error is this process's own and the others know of it."""
        if _is_collective_error(error) and self._verdict_received.wait(
            self._patience.diagnosis_timeout_seconds
        ):
            self._log_once()
            raise SystemExit(EXIT_PEER_LOST) from error
        self._own_error = error
        self._send(failed=traceback.format_exception_only(error)[-1].strip())
        self._verdict_received.wait(self._patience.exit_grace_seconds)

    def _send(self, **content: Any) -> None:
        # A broken connection is the listening thread's to judge.
        with suppress(OSError), self._speaking:
            self._connection.sendall(message(**content))

    def _beat(self, pulse: HeartbeatSource) -> None:
        while not self._verdict_received.wait(beat_interval(pulse.hang_timeout_seconds)):
            self._send(beat=asdict(pulse.heartbeat()))

    def _listen(self) -> None:
        heard = self._receive_verdict()
        self._lost = heard.get("lost")
        self._verdict_received.set()
        if heard.get("is_hung") and self._pulse is not None:
            self._pulse.dump_stacks()
        if self._lost is None:
            self._connection.close()
            return
        if heard[
            "is_gone"
        ]:  # otherwise a process with an error of its own need not hear of others'
            self._log_once()
        time.sleep(self._patience.exit_grace_seconds)
        if self._own_error is not None:
            time.sleep(self._patience.cleanup_timeout_seconds)
            traceback.print_exception(self._own_error)
            os._exit(1)
        self._log_once()
        os._exit(EXIT_PEER_LOST)

    def _receive_verdict(self) -> dict[str, Any]:
        """Rank 0's verdict, or what its silence means."""
        who = self._invitation.who
        try:
            for line in receive_lines(self._connection):
                if "lost" in (content := json.loads(line)):
                    return content
        except TimeoutError:
            assert self._pulse is not None
            stopped = peer_hung_message(who, "silent", self._pulse.hang_timeout_seconds)
            return {"lost": stopped, "is_gone": True, "is_hung": True}
        except (OSError, ValueError):
            pass
        return {"lost": peer_lost_message(who), "is_gone": True}

    def _log_once(self) -> None:
        with self._log_lock:
            if self._has_logged:
                return
            self._has_logged = True
            # A log on a disk that hangs must not keep this process; this timer is not a thread's.
            faulthandler.dump_traceback_later(
                2 * self._patience.exit_grace_seconds, exit=True, file=2
            )
            get_logger(__name__).critical(self._lost)
            faulthandler.cancel_dump_traceback_later()


def _is_collective_error(error: BaseException | None) -> bool:
    """Whether a collective or the store failed, perhaps as the cause of the error at hand.

    gloo has no class of errors of its own, but names the file that gave up on a connection.
    """
    while error is not None:
        gave_up = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
        if gave_up or isinstance(error, dist.DistError):
            return True
        error = error.__cause__ or error.__context__
    return False
