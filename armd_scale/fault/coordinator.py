"""Rank-0 failure detector: tracks which ranks are connected, finished, lost or hung.

Every rank, rank 0 included, keeps one TCP connection to this detector and sends lines of JSON:

    TOKEN {"rank", "name"}         registration, once; nothing is parsed before the token matches
    {"heartbeat": {...}}           the current phase, if hang detection is enabled
    {"failed": error}              this rank raised an exception
    {"finished": true}             this rank has reached the end of its work

The detector answers with {"alive": true} now and then (hang detection only), and with one
{"outcome": {...}} at the end: either all ranks have finished, or the first failure that was seen.
"""

import hmac
import json
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

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

# A stranger may connect too. Of connections without the token the newest so many are kept, and so
# many bytes are read from each: a registration is shorter.
MAX_UNREGISTERED, MAX_UNREGISTERED_BYTES = 64, 4096
# So many more than the ranks may wait to be accepted: while the queue is full, the kernel drops
# attempts, and a rank tries again after seconds only.
SPARE_BACKLOG = 512
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
        address: address of this machine to listen at; empty for all of its addresses.
        keepalive_timeout_seconds: silence of a machine after which its ranks are lost.
        hang_timeout_seconds: time without a heartbeat, or in one phase, after which a rank counts
            as hung; None disables hang detection.
    """

    def __init__(
        self,
        world_size: int,
        *,
        address: str = "127.0.0.1",
        keepalive_timeout_seconds: int,
        hang_timeout_seconds: float | None = None,
    ) -> None:
        # Each rank is one open file here; jobs above a few hundred ranks exceed the usual 1024
        # together with gloo's connections, of which there may be as many.
        raise_nofile_limit(2 * world_size + OTHER_OPEN_FILES)
        self.token = secrets.token_hex(16)
        self._listener = _listen(address, backlog=world_size + SPARE_BACKLOG)
        close_in_forked_children(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._world_size = world_size
        self._keepalive_timeout_seconds = keepalive_timeout_seconds
        self._hang_timeout_seconds = hang_timeout_seconds
        self._peers: dict[int, _PeerConnection] = {}
        # In the order in which they connected.
        self._unregistered: list[_PeerConnection] = []
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
        for peer in (*self._peers.values(), *self._unregistered):
            peer.connection.close()
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it is gone again, or this process may open no more files
            self._drop_unregistered(keep=0)
            time.sleep(0.1)  # the listener stays readable: without a pause this would spin
            return
        connection.setblocking(False)
        close_in_forked_children(connection)
        enable_keepalive(connection, timeout_seconds=self._keepalive_timeout_seconds)
        peer = _PeerConnection(connection)
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self._unregistered.append(peer)
        # All ranks may be among them, in the moment in which the job starts.
        self._drop_unregistered(keep=MAX_UNREGISTERED + self._world_size)

    def _drop_unregistered(self, *, keep: int) -> None:
        """Close all but the newest connections that have not shown the token."""
        for peer in self._unregistered[: max(0, len(self._unregistered) - keep)]:
            self._close(peer)

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
            if peer.rank is not None:
                self._handle_message(peer, line)
            elif not self._register(peer, line):
                self._close(peer)
                return
        # Lines first: a rank may send "finished" and close in one packet.
        limit = MAX_UNREGISTERED_BYTES if peer.rank is None else MAX_LINE_BYTES
        # A stranger whose line was refused is closed already.
        is_open = peer.connection.fileno() != -1
        if is_open and (not data or len(peer.received) > limit):
            self._close(peer)

    def _handle_message(self, peer: _PeerConnection, line: bytes) -> None:
        content = json.loads(line)
        if "heartbeat" in content:
            peer.heartbeat = Heartbeat(**content["heartbeat"])
            peer.heartbeat_time = time.monotonic()
        elif content.get("finished"):
            assert peer.rank is not None
            self._finished.add(peer.rank)
        elif "failed" in content:
            message = peer_failed_message(peer.name, content["failed"])
            self._declare_failure(JobOutcome(failure=message))

    def _register(self, peer: _PeerConnection, line: bytes) -> bool:
        """Register a rank; return False for a line without the job's token (port scanners)."""
        token, _, content = line.partition(b" ")
        # Compared in constant time, so that the token cannot be found by measuring.
        if not hmac.compare_digest(token, self.token.encode()):
            return False
        registration = json.loads(content)
        peer.rank, peer.name = registration["rank"], registration["name"]
        self._unregistered.remove(peer)
        self._peers[registration["rank"]] = peer
        if self._outcome is not None:
            # Another rank failed before this one arrived, which would wait for it forever.
            _send(peer, _encode(self._outcome))
        return True

    def _close(self, peer: _PeerConnection) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer in self._unregistered:
            self._unregistered.remove(peer)
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


def _listen(address: str, *, backlog: int) -> socket.socket:
    """Return a listening socket at a free port; at all addresses if this one is not the machine's.

    Args:
        address: an IP address; empty for all.
        backlog: number of connections that may wait, as all ranks connect at the same moment.
    """
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError):  # behind address translation no interface has it
            return socket.create_server((address, 0), family=family, backlog=backlog)
    has_ipv6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
    return socket.create_server(("", 0), family=family, backlog=backlog, dualstack_ipv6=has_ipv6)


def _encode(outcome: JobOutcome) -> bytes:
    return encode_line(outcome=asdict(outcome))


def _send(peer: _PeerConnection, line: bytes) -> None:
    # A broken connection is reported by the next read from it.
    with suppress(OSError):
        peer.connection.sendall(line)
