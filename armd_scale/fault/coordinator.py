"""Rank-0 failure detector: tracks which ranks are connected, finished, lost or hung.

Every rank, rank 0 included, keeps one TCP connection to this detector and sends lines of JSON:

    {"token", "rank", "name"}      registration, once
    {"heartbeat": {...}}           the current phase, if hang detection is enabled
    {"failed": error}              this rank raised an exception
    {"finished": true}             this rank has reached the end of its work

The detector answers with {"alive": true} now and then (hang detection only), and with one
{"outcome": {...}} at the end: either all ranks have finished, or the first failure that was seen.
"""

import json
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from armd_scale.fault.heartbeat import (
    Heartbeat,
    JobOutcome,
    heartbeat_interval,
    peer_failed_message,
    peer_hung_message,
    peer_lost_message,
)
from armd_scale.fault.json_socket import (
    MAX_LINE_BYTES,
    close_in_forked_children,
    enable_keepalive,
    encode_line,
    raise_nofile_limit,
)

# Files that rank 0 needs beside its connections: shards, checkpoints, gloo's own sockets.
OTHER_OPEN_FILES = 512


@dataclass(frozen=True, kw_only=True)
class RendezvousInfo:
    """What a rank needs to know to register with the detector."""

    port: int
    token: str
    rank0_name: str


@dataclass
class _PeerConnection:
    """State of one rank's connection."""

    connection: socket.socket
    received: bytes = b""
    """Bytes after the last complete line."""
    rank: int | None = None
    """None until the rank has registered."""
    name: str = ""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    heartbeat_time: float = field(default_factory=time.monotonic)
    """Arrival of the last heartbeat on this process's clock."""

    def seconds_in_phase(self, now: float) -> float:
        """Return the time since the rank entered its phase.

        Clocks of two machines cannot be compared, so the rank sends an age instead of a time.
        """
        return now - self.heartbeat_time + self.heartbeat.seconds_in_phase


class FailureDetector:
    """Watches all ranks in a thread of rank 0, from the start of the job to its end.

    Args:
        world_size: number of ranks, rank 0 included.
        keepalive_timeout_seconds: silence of a machine after which its ranks are lost.
        hang_timeout_seconds: time without a heartbeat, or in one phase, after which a rank counts
            as hung; None disables hang detection.
    """

    def __init__(
        self,
        world_size: int,
        *,
        keepalive_timeout_seconds: int,
        hang_timeout_seconds: float | None = None,
    ) -> None:
        # Each rank is one open file here; jobs above a few hundred ranks exceed the usual 1024
        # together with gloo's connections, of which there may be as many.
        raise_nofile_limit(2 * world_size + OTHER_OPEN_FILES)
        self.token = secrets.token_hex(16)
        has_ipv6 = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if has_ipv6 else socket.AF_INET,
            backlog=world_size,  # all ranks connect at the same moment
            dualstack_ipv6=has_ipv6,
        )
        close_in_forked_children(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._world_size = world_size
        self._keepalive_timeout_seconds = keepalive_timeout_seconds
        self._hang_timeout_seconds = hang_timeout_seconds
        self._peers: dict[int, _PeerConnection] = {}
        self._finished: set[int] = set()
        self._outcome: JobOutcome | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="failure-detector")
        self._thread.start()

    def wait_until_finished(self) -> None:
        """Return after every rank has been told that all ranks have finished."""
        self._thread.join()

    def _serve(self) -> None:
        hang_timeout = self._hang_timeout_seconds
        poll_seconds = None if hang_timeout is None else heartbeat_interval(hang_timeout)
        try:
            while len(self._finished) < self._world_size:
                # Without hang detection the thread sleeps until a socket is readable.
                for event, _ in self._selector.select(poll_seconds):
                    self._accept() if event.data is None else self._read(event.data)
                if hang_timeout is not None and self._outcome is None:
                    self._check_for_hang(hang_timeout)
        except OSError as error:
            # Unwatched, the job would lose hang and death detection without a word: end it.
            message = peer_failed_message("rank 0", f"{error} in the failure detector")
            self._declare_failure(JobOutcome(failure=message))
            return
        self._broadcast(_encode(JobOutcome()))
        for peer in self._peers.values():
            peer.connection.close()
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        close_in_forked_children(connection)
        enable_keepalive(connection, timeout_seconds=self._keepalive_timeout_seconds)
        self._selector.register(connection, selectors.EVENT_READ, _PeerConnection(connection))

    def _read(self, peer: _PeerConnection) -> None:
        try:
            data = peer.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:  # reset, or closed by the keepalive timeout
            data = b""
        peer.received += data
        *lines, peer.received = peer.received.split(b"\n")
        for line in lines:
            self._handle_message(peer, line)
        # Lines first: a rank may send "finished" and close in one packet.
        if not data or len(peer.received) > MAX_LINE_BYTES:
            self._close(peer)

    def _handle_message(self, peer: _PeerConnection, line: bytes) -> None:
        try:
            content = json.loads(line)
        except ValueError:
            content = {}
        if peer.rank is None:
            self._register(peer, content)
        elif "heartbeat" in content:
            peer.heartbeat = Heartbeat(**content["heartbeat"])
            peer.heartbeat_time = time.monotonic()
        elif content.get("finished"):
            self._finished.add(peer.rank)
        elif "failed" in content:
            message = peer_failed_message(peer.name, content["failed"])
            self._declare_failure(JobOutcome(failure=message))

    def _register(self, peer: _PeerConnection, content: Any) -> None:
        """Register a rank. Connections without the job's token (port scanners) are ignored."""
        if not isinstance(content, dict) or content.get("token") != self.token:
            return
        peer.rank, peer.name = content["rank"], content["name"]
        self._peers[content["rank"]] = peer
        if self._outcome is not None:
            # Another rank failed before this one arrived, which would wait for it forever.
            _send(peer, _encode(self._outcome))

    def _close(self, peer: _PeerConnection) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer.rank is not None and peer.rank not in self._finished:
            self._declare_failure(JobOutcome(failure=peer_lost_message(peer.name), is_gone=True))

    def _check_for_hang(self, hang_timeout_seconds: float) -> None:
        """Declare a hung rank, or tell all ranks that rank 0 is alive.

        A single hung rank soon blocks all others in a collective, so every rank exceeds the
        timeout at about the same time. A rank without heartbeats (stopped, or its machine is
        frozen) is blamed first; otherwise the rank with the lowest phase index, as the others have
        gone on to a later phase and wait there. Among equals it is the one that waits longest.
        """
        now = time.monotonic()
        peers = [peer for rank, peer in self._peers.items() if rank not in self._finished]
        silent = [peer for peer in peers if now - peer.heartbeat_time > hang_timeout_seconds]
        if silent:
            hung = min(silent, key=lambda peer: peer.heartbeat_time)
        elif any(peer.seconds_in_phase(now) > hang_timeout_seconds for peer in peers):
            hung = min(
                peers, key=lambda peer: (peer.heartbeat.phase_index, -peer.seconds_in_phase(now))
            )
        else:
            self._broadcast(encode_line(alive=True))
            return
        message = peer_hung_message(hung.name, hung.heartbeat.phase, hung.seconds_in_phase(now))
        self._declare_failure(JobOutcome(failure=message, is_gone=True, is_hung=True))

    def _declare_failure(self, outcome: JobOutcome) -> None:
        """Broadcast the first failure. Later ones are its consequences and are dropped."""
        if self._outcome is None:
            self._outcome = outcome
            self._broadcast(_encode(outcome))

    def _broadcast(self, line: bytes) -> None:
        # Rank 0 last: its process may exit as soon as it hears, and this thread with it.
        for rank in sorted(self._peers, reverse=True):
            _send(self._peers[rank], line)


def _encode(outcome: JobOutcome) -> bytes:
    return encode_line(outcome=asdict(outcome))


def _send(peer: _PeerConnection, line: bytes) -> None:
    # A broken connection is reported by the next read from it.
    with suppress(OSError):
        peer.connection.sendall(line)
