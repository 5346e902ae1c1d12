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
from armd_scale.log import get_logger
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.lines import message, receive_lines, watch_connection
from armd_scale.parallel.roll import Invitation, Roll
from armd_scale.parallel.verdicts import Pulse, beat_interval, gone, hung

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
def watched(
    environment: Environment, *, patience: Patience | None = None, pulse: Pulse | None = None
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
    if pulse is not None and pulse.hang_seconds == 0:
        pulse = None
    if environment.world_size == 1 and pulse is None:
        yield
        return
    member = _join(environment, patience or Patience(), pulse)
    try:
        yield
    except BaseException as error:
        member.fail(error)
        raise
    member.leave()


def _join(environment: Environment, patience: Patience, pulse: Pulse | None) -> "_Member":
    """Meets at rank 0, whose address goes round through torch.distributed's own store."""
    store = distributed_c10d._get_default_store()
    key = f"liveness/{next(_rounds)}"
    who = f"rank {environment.rank} (process {os.getpid()} on {environment.host})"
    roll = None
    if environment.is_main:
        hang = None if pulse is None else pulse.hang_seconds
        roll = Roll(environment.world_size, silent=patience.silent, hang=hang)
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
    # Rank 0 says that it lives, where beats are wanted; a thread that waits for it may time out.
    connection.settimeout(None if pulse is None else pulse.hang_seconds)
    watch_connection(connection, silent=patience.silent)
    connection.sendall(message(token=invitation.token, rank=environment.rank, who=who))
    return _Member(connection, invitation, patience, roll=roll, pulse=pulse)


class _Member:
    """This process's end of its connection: the main thread speaks, a thread of its own listens.

    Another one beats, where there is a pulse.
    """

    def __init__(
        self,
        connection: socket.socket,
        invitation: Invitation,
        patience: Patience,
        *,
        roll: Roll | None,
        pulse: Pulse | None,
    ) -> None:
        self._connection, self._invitation, self._patience = connection, invitation, patience
        self._roll, self._pulse = roll, pulse
        self._speaking = threading.Lock()
        self._heard = threading.Event()
        self._lost: str | None = None
        self._own: BaseException | None = None
        self._saying = threading.Lock()
        self._said = False
        threading.Thread(target=self._listen, daemon=True, name="liveness").start()
        if pulse is not None:
            threading.Thread(target=self._beat, args=(pulse,), daemon=True, name="pulse").start()

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
        # A broken connection is the listening thread's to judge.
        with suppress(OSError), self._speaking:
            self._connection.sendall(message(**content))

    def _beat(self, pulse: Pulse) -> None:
        while not self._heard.wait(beat_interval(pulse.hang_seconds)):
            self._speak(beat=asdict(pulse.beat()))

    def _listen(self) -> None:
        heard = self._hear()
        self._lost = heard.get("lost")
        self._heard.set()
        if heard.get("is_hung") and self._pulse is not None:
            self._pulse.dump_stacks()
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
        """Rank 0's verdict, or what its silence means."""
        who = self._invitation.who
        try:
            for line in receive_lines(self._connection):
                if "lost" in (content := json.loads(line)):
                    return content
        except TimeoutError:
            assert self._pulse is not None
            stopped = hung(who, "silent", self._pulse.hang_seconds)
            return {"lost": stopped, "is_gone": True, "is_hung": True}
        except (OSError, ValueError):
            pass
        return {"lost": gone(who), "is_gone": True}

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
