"""Notices that a process of the job is gone, names it, and ends the others.

A process that is killed takes its part of a collective with it. gloo's peers then see a closed
connection, without a name; NCCL's wait for as long as a collective may take. So every process keeps
one idle TCP connection to rank 0, apart from those of torch.distributed, with a thread asleep at
either end. The kernel closes it as soon as the process ends, in whatever way, and answers keepalive
probes for as long as the process lives. There are no beats that a busy process could miss: one that
computes for minutes, even in C code that holds the GIL, is not taken for dead, and a lost machine
is told from a slow one. A process that lives and does nothing is not this module's business.

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
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from armd_scale.errors import TrainingError
from armd_scale.log import get_logger
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.roll import (
    Invitation,
    Roll,
    gone,
    message,
    receive_line,
    watch_connection,
)

LOST_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command may well succeed when run again

_rounds = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds.

    A killed process is named at once; the others are gone `parting` later at the latest.
    """

    silent: int = 60
    """Silence of a machine's kernel after which its processes are lost; shorter would end jobs
    whose network recovers (a switch that restarts its ports takes up to 50 s)."""
    naming: float = 10.0
    """Wait for a name when a collective has failed: a killed process with much memory takes
    seconds to close its connections, and not in a fixed order."""
    parting: float = 5.0
    """What the main thread is given to end by itself once another process is lost."""
    unwinding: float = 30.0
    """What the main thread is given to end after an error of its own: groups can hang as they are
    destroyed when other processes no longer answer."""


@contextmanager
def watched(environment: Environment, *, patience: Patience | None = None) -> Iterator[None]:
    """Ends this process when another of the job is lost; all leave the block together.

    Goes around the job's work, inside the process groups; every process enters it. Within seconds
    of a loss, all log one sentence that names the lost process and exit with `LOST_STATUS`: by
    `SystemExit` where the main thread gets here because a collective failed, from a thread where it
    does not. An exception of this process's own is raised as it is, after the others have been told
    of it; those that raise one too end in their own. A job of one process starts nothing.

    Raises:
        TrainingError: rank 0 cannot be reached.
        SystemExit: another process is lost.
    """
    if environment.world_size == 1:
        yield
        return
    member = _join(environment, patience or Patience())
    try:
        yield
    except BaseException as error:
        member.fail(error)
        raise
    member.leave()


def _join(environment: Environment, patience: Patience) -> "_Member":
    """Meets at rank 0, whose address goes round through torch.distributed's own store."""
    store = distributed_c10d._get_default_store()
    key = f"liveness/{next(_rounds)}"
    who = f"rank {environment.rank} (process {os.getpid()} on {environment.host})"
    roll = None
    if environment.is_main:
        roll = Roll(environment.world_size, silent=patience.silent)
        store.set(key, message(port=roll.port, token=roll.token, who=who).decode())
    invitation = Invitation(**json.loads(store.get(key)))
    address = (environment.main_address, invitation.port)
    try:
        connection = socket.create_connection(address, timeout=patience.silent)
    except OSError as error:
        raise TrainingError(
            f"every process must reach rank 0, and {who} got no connection to port {address[1]} of "
            f"{address[0]} ({error}): open the ports between the job's machines"
        ) from error
    connection.settimeout(None)
    watch_connection(connection, silent=patience.silent)
    connection.sendall(message(token=invitation.token, rank=environment.rank, who=who))
    return _Member(connection, invitation, patience, roll)


class _Member:
    """This process's end of its connection: the main thread speaks, a thread of its own listens."""

    def __init__(
        self,
        connection: socket.socket,
        invitation: Invitation,
        patience: Patience,
        roll: Roll | None,
    ) -> None:
        self._connection, self._invitation, self._patience = connection, invitation, patience
        self._roll = roll
        self._heard = threading.Event()
        self._lost: str | None = None
        self._own: BaseException | None = None
        self._saying = threading.Lock()
        self._said = False
        threading.Thread(target=self._listen, daemon=True, name="liveness").start()

    def leave(self) -> None:
        """Waits until all have come to their end."""
        self._speak(leaving=True)
        self._heard.wait()
        if self._lost is not None:
            self._say()
            raise SystemExit(LOST_STATUS)
        if self._roll is not None:
            self._roll.finish()

    def fail(self, error: BaseException) -> None:
        """Returns when the error is this process's own and the others know of it."""
        if _comes_from_a_lost_peer(error) and self._heard.wait(self._patience.naming):
            self._say()
            raise SystemExit(LOST_STATUS) from error
        self._own = error
        self._speak(failed=traceback.format_exception_only(error)[-1].strip())
        self._heard.wait(self._patience.parting)

    def _speak(self, **content: Any) -> None:
        with suppress(OSError):  # a broken connection is the listening thread's to judge
            self._connection.sendall(message(**content))

    def _listen(self) -> None:
        heard = self._hear()
        self._lost = heard.get("lost")
        self._heard.set()
        if self._lost is None:
            self._connection.close()
            return
        if heard[
            "is_gone"
        ]:  # otherwise a process with an error of its own need not hear of others'
            self._say()
        time.sleep(self._patience.parting)
        if self._own is not None:
            time.sleep(self._patience.unwinding)
            traceback.print_exception(self._own)
            os._exit(1)
        self._say()
        os._exit(LOST_STATUS)

    def _hear(self) -> dict[str, Any]:
        """The one line that rank 0 ever sends, or what its silence means."""
        try:
            return json.loads(receive_line(self._connection))
        except (OSError, ValueError):
            return {"lost": gone(self._invitation.who), "is_gone": True}

    def _say(self) -> None:
        with self._saying:
            if self._said:
                return
            self._said = True
            # A log on a disk that hangs must not keep this process; this timer is not a thread's.
            faulthandler.dump_traceback_later(2 * self._patience.parting, exit=True, file=2)
            get_logger(__name__).critical(self._lost)
            faulthandler.cancel_dump_traceback_later()


def _comes_from_a_lost_peer(error: BaseException | None) -> bool:
    """Whether a collective or the store failed, perhaps as the cause of the error at hand.

    gloo has no class of errors of its own, but names the file that gave up on a connection.
    """
    while error is not None:
        gave_up = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
        if gave_up or isinstance(error, dist.DistError):
            return True
        error = error.__cause__ or error.__context__
    return False
