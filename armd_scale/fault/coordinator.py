"""Rank 0's roll of the job: who is here, who has come to its end, who is gone.

Lines of JSON over one TCP connection a process. A process introduces itself with the job's token,
says now and then what it is doing where somebody wants to know (`beat`), and at last either that it
has come to its end (`leaving`) or what it failed with (`failed`). Rank 0 tells each process who is
lost, or that all have come to their end; before that, where beats are wanted, only that it lives.
"""

import json
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from armd_scale.fault.heartbeat import (
    Heartbeat,
    beat_interval,
    peer_failed_message,
    peer_hung_message,
    peer_lost_message,
)
from armd_scale.fault.json_socket import (
    LONGEST_LINE,
    connections,
    enable_keepalive,
    message,
    raise_nofile_limit,
)


@dataclass(frozen=True, kw_only=True)
class RendezvousInfo:
    """What a process needs to know to have itself put on the roll."""

    port: int
    token: str
    who: str
    """Rank 0, in words."""


@dataclass
class _PeerConnection:
    """One process's connection, as rank 0 sees it."""

    connection: socket.socket
    received: bytes = b""
    rank: int | None = None
    """None until it has introduced itself."""
    who: str = ""
    beat: Heartbeat = field(default_factory=Heartbeat)
    heard: float = field(default_factory=time.monotonic)
    """When its last beat came."""

    def seconds_in_phase(self, now: float) -> float:
        """Seconds since it began what it is doing, for all that is known."""
        return now - self.heard + self.beat.seconds


class FailureDetector:
    """Keeps the roll in a thread of rank 0, from the start of the job to its end.

    Args:
        world_size: processes of the job, rank 0 among them.
        silent: silence of a machine, in seconds, after which its processes are lost.
        hang: seconds after which a process that beats no more, or is still doing the same, is
            lost too; None: as long as it likes.
    """

    def __init__(
        self, world_size: int, *, silent: int, hang_timeout_seconds: float | None = None
    ) -> None:
        raise_nofile_limit(2 * world_size + 512)
        self.token = secrets.token_hex(16)
        both = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            backlog=world_size,
            dualstack_ipv6=both,
        )
        connections.add(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._world_size, self._silent, self._hang = world_size, silent, hang_timeout_seconds
        self._lines: dict[int, _PeerConnection] = {}
        self._finished: set[int] = set()
        self._verdict: bytes | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="liveness-roll")
        self._thread.start()

    def finish(self) -> None:
        """Returns when all have been told that all have come to their end."""
        self._thread.join()

    def _serve(self) -> None:
        try:
            while len(self._finished) < self._world_size:
                for ready, _ in self._selector.select(self._hang and beat_interval(self._hang)):
                    self._accept() if ready.data is None else self._read(ready.data)
                if self._hang is not None and self._verdict is None:
                    self._look_for_hung(self._hang)
        except OSError as error:
            self._declare_failure(
                peer_failed_message("rank 0", f"{error} as it watched the others"), is_gone=False
            )
            return
        self._broadcast(message(lost=None))
        for line in self._lines.values():
            line.connection.close()
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        enable_keepalive(connection, timeout_seconds=self._silent)
        self._selector.register(connection, selectors.EVENT_READ, _PeerConnection(connection))

    def _read(self, line: _PeerConnection) -> None:
        try:
            data = line.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:  # reset, or silent for too long
            data = b""
        line.received += data
        *complete, line.received = line.received.split(b"\n")
        for text in complete:
            self._handle_message(line, text)
        if not data or len(line.received) > LONGEST_LINE:
            self._close(line)

    def _handle_message(self, line: _PeerConnection, text: bytes) -> None:
        try:
            content = json.loads(text)
        except ValueError:
            content = {}
        if line.rank is None:
            self._register(line, content)
        elif "beat" in content:
            line.beat, line.heard = Heartbeat(**content["beat"]), time.monotonic()
        elif content.get("leaving"):
            self._finished.add(line.rank)
        elif "failed" in content:
            self._declare_failure(peer_failed_message(line.who, content["failed"]), is_gone=False)

    def _register(self, line: _PeerConnection, content: Any) -> None:
        """Takes a process in; a stranger (a port scanner, another job) is not listened to."""
        if not isinstance(content, dict) or content.get("token") != self.token:
            return
        line.rank, line.who = content["rank"], content["who"]
        self._lines[content["rank"]] = line
        if self._verdict is not None:
            self._tell(line, self._verdict)

    def _close(self, line: _PeerConnection) -> None:
        self._selector.unregister(line.connection)
        line.connection.close()
        if line.rank is not None and line.rank not in self._finished:
            self._declare_failure(peer_lost_message(line.who), is_gone=True)

    def _look_for_hung(self, hang: float) -> None:
        """Judges a process that hangs, and tells the others that this one does not.

        One process that hangs soon has all others wait for it. So of those that beat, the one
        that is least far is to blame; one that does not even beat goes before it.
        """
        now = time.monotonic()
        lines = [line for rank, line in self._lines.items() if rank not in self._finished]
        stopped = [line for line in lines if now - line.heard > hang]
        if stopped:
            self._judge_hung(min(stopped, key=lambda line: line.heard), now)
        elif any(line.seconds_in_phase(now) > hang for line in lines):
            self._judge_hung(
                min(lines, key=lambda line: (line.beat.phase_index, -line.seconds_in_phase(now))),
                now,
            )
        else:
            self._broadcast(message(lives=True))

    def _judge_hung(self, line: _PeerConnection, now: float) -> None:
        sentence = peer_hung_message(line.who, line.beat.phase, line.seconds_in_phase(now))
        self._declare_failure(sentence, is_gone=True, is_hung=True)

    def _declare_failure(self, sentence: str, *, is_gone: bool, is_hung: bool = False) -> None:
        """The first loss is the cause of those that follow, so it is the one that is named."""
        if self._verdict is None:
            self._verdict = message(lost=sentence, is_gone=is_gone, is_hung=is_hung)
            self._broadcast(self._verdict)

    def _broadcast(self, text: bytes) -> None:
        # Rank 0 last: it may end the moment it hears, and this thread with it.
        for rank in sorted(self._lines, reverse=True):
            self._tell(self._lines[rank], text)

    def _tell(self, line: _PeerConnection, text: bytes) -> None:
        with suppress(OSError):
            line.connection.sendall(text)
