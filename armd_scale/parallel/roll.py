"""Rank 0's roll of the job: who is here, who has come to its end, who is gone.

Lines of JSON over one TCP connection a process. A process introduces itself with the job's token,
then says either that it has come to its end (`leaving`) or what it failed with (`failed`). Rank 0
sends each process one line in its life: who is lost, or that all have come to their end.
"""

import json
import os
import resource
import secrets
import selectors
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

LONGEST_LINE = 65536
BEFORE_ALL = "every process of the job must live until its end, and "

_connections: WeakSet[socket.socket] = WeakSet()


def _close_in_child() -> None:
    # A data worker that outlives its process would keep the connection open, and the death hidden.
    for connection in list(_connections):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)


def message(**content: Any) -> bytes:
    """A line to send."""
    return json.dumps(content).encode() + b"\n"


def gone(who: str) -> str:
    """The sentence about a process that ended without a word."""
    return (
        f"{BEFORE_ALL}{who} is gone (killed, out of memory, or its machine lost): run the same "
        "command again to continue from the last checkpoint"
    )


def failed(who: str, error: str) -> str:
    """The sentence about a process that ended with an error of its own."""
    return (
        f"{BEFORE_ALL}{who} failed with {error}: mend what its own message tells, then run the "
        "same command again to continue from the last checkpoint"
    )


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """What a process needs to know to have itself put on the roll."""

    port: int
    token: str
    who: str
    """Rank 0, in words."""


def receive_line(connection: socket.socket) -> bytes:
    """The next line, waited for; less than a line, or nothing, where the other end closes first."""
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(4096)
        if not part:
            break
        data += part
    return data


def watch_connection(connection: socket.socket, *, silent: int) -> None:
    """Has the kernel end the connection when the other machine's has been silent for so long."""
    _connections.add(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(1, silent // 6)
    options = {
        "TCP_KEEPIDLE": max(1, silent - 3 * interval),
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": silent * 1000,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has them all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@dataclass
class _Line:
    """One process's connection, as rank 0 sees it."""

    connection: socket.socket
    received: bytes = b""
    rank: int | None = None
    """None until it has introduced itself."""
    who: str = ""


class Roll:
    """Keeps the roll in a thread of rank 0, from the start of the job to its end.

    Args:
        world_size: processes of the job, rank 0 among them.
        silent: silence of a machine, in seconds, after which its processes are lost.
    """

    def __init__(self, world_size: int, *, silent: int) -> None:
        _allow_files(2 * world_size + 512)
        self.token = secrets.token_hex(16)
        both = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            backlog=world_size,
            dualstack_ipv6=both,
        )
        _connections.add(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._world_size, self._silent = world_size, silent
        self._lines: dict[int, _Line] = {}
        self._at_end: set[int] = set()
        self._verdict: bytes | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._keep, daemon=True, name="liveness-roll")
        self._thread.start()

    def finish(self) -> None:
        """Returns when all have been told that all have come to their end."""
        self._thread.join()

    def _keep(self) -> None:
        try:
            while len(self._at_end) < self._world_size:
                for ready, _ in self._selector.select():
                    self._admit() if ready.data is None else self._read(ready.data)
        except OSError as error:
            self._judge(failed("rank 0", f"{error} as it watched the others"), is_gone=False)
            return
        self._tell_all(message(lost=None))
        for line in self._lines.values():
            line.connection.close()
        self._selector.close()
        self._listener.close()

    def _admit(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        watch_connection(connection, silent=self._silent)
        self._selector.register(connection, selectors.EVENT_READ, _Line(connection))

    def _read(self, line: _Line) -> None:
        try:
            data = line.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:  # reset, or silent for too long
            data = b""
        line.received += data
        *complete, line.received = line.received.split(b"\n")
        for text in complete:
            self._heed(line, text)
        if not data or len(line.received) > LONGEST_LINE:
            self._close(line)

    def _heed(self, line: _Line, text: bytes) -> None:
        try:
            content = json.loads(text)
        except ValueError:
            content = {}
        if line.rank is None:
            self._enrol(line, content)
        elif content.get("leaving"):
            self._at_end.add(line.rank)
        elif "failed" in content:
            self._judge(failed(line.who, content["failed"]), is_gone=False)

    def _enrol(self, line: _Line, content: Any) -> None:
        """Takes a process in; a stranger (a port scanner, another job) is not listened to."""
        if not isinstance(content, dict) or content.get("token") != self.token:
            return
        line.rank, line.who = content["rank"], content["who"]
        self._lines[content["rank"]] = line
        if self._verdict is not None:
            self._tell(line, self._verdict)

    def _close(self, line: _Line) -> None:
        self._selector.unregister(line.connection)
        line.connection.close()
        if line.rank is not None and line.rank not in self._at_end:
            self._judge(gone(line.who), is_gone=True)

    def _judge(self, sentence: str, *, is_gone: bool) -> None:
        """The first loss is the cause of those that follow, so it is the one that is named."""
        if self._verdict is None:
            self._verdict = message(lost=sentence, is_gone=is_gone)
            self._tell_all(self._verdict)

    def _tell_all(self, text: bytes) -> None:
        # Rank 0 last: it may end the moment it hears, and this thread with it.
        for rank in sorted(self._lines, reverse=True):
            self._tell(self._lines[rank], text)

    def _tell(self, line: _Line, text: bytes) -> None:
        with suppress(OSError):
            line.connection.sendall(text)


def _allow_files(needed: int) -> None:
    """Raises the soft limit of open files, often 1024, where as many connections need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
