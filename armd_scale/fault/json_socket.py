"""Lines of JSON over TCP connections that the kernel watches."""

import json
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

LONGEST_LINE = 65536

connections: WeakSet[socket.socket] = WeakSet()


def _close_in_child() -> None:
    # A data worker that outlives its process would keep the connection open, and the death hidden.
    for connection in list(connections):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)


def message(**content: Any) -> bytes:
    """A line to send."""
    return json.dumps(content).encode() + b"\n"


def receive_lines(connection: socket.socket) -> Iterator[bytes]:
    """Line after line, waited for, until the other end closes."""
    data = b""
    while part := connection.recv(4096):
        *lines, data = (data + part).split(b"\n")
        yield from lines


def enable_keepalive(connection: socket.socket, *, timeout_seconds: int) -> None:
    """Has the kernel end the connection when the other machine's has been silent for so long."""
    connections.add(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(1, timeout_seconds // 6)
    options = {
        "TCP_KEEPIDLE": max(1, timeout_seconds - 3 * interval),
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": timeout_seconds * 1000,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has them all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def raise_nofile_limit(needed: int) -> None:
    """Raises the soft limit of open files, often 1024, where as many connections need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
