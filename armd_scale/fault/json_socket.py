"""Newline-delimited JSON over TCP connections with kernel keepalive."""

import json
import os
import resource
import socket
from collections.abc import Iterator
from functools import cache
from typing import Any
from weakref import WeakSet

MAX_LINE_BYTES = 65536


def encode_line(**content: Any) -> bytes:
    """Return a JSON object with the given members, as one line."""
    return json.dumps(content).encode() + b"\n"


def encode_registration(token: str, **content: Any) -> bytes:
    """Return the first line of a connection: the job's token, a space, and a JSON object."""
    return token.encode() + b" " + encode_line(**content)


def receive_lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield lines as they arrive, until the peer closes the connection.

    Raises:
        TimeoutError: the connection has a timeout, and nothing arrived for so long.
    """
    data = b""
    while part := connection.recv(4096):
        *lines, data = (data + part).split(b"\n")
        yield from lines


def enable_keepalive(connection: socket.socket, *, timeout_seconds: int) -> None:
    """Let the kernel close the connection after the peer's machine is silent for the timeout.

    Two options are needed. Keepalive probes (three of them, the last at the timeout) cover an idle
    connection; TCP_USER_TIMEOUT covers one with unacknowledged data, on which no probes are sent
    and Linux would retransmit for about 15 minutes.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(1, timeout_seconds // 6)
    options = {
        "TCP_KEEPIDLE": max(1, timeout_seconds - 3 * interval),
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": timeout_seconds * 1000,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has all of them, macOS some
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def close_in_forked_children(connection: socket.socket) -> None:
    """Close the connection in every process that is forked from this one.

    A forked data worker inherits the socket. If it outlives this process, the kernel keeps the
    connection open, and the peer does not notice the death.
    """
    _connections_to_close().add(connection)


@cache
def _connections_to_close() -> "WeakSet[socket.socket]":
    """Return the registered connections; the first call installs the fork hook."""
    connections: WeakSet[socket.socket] = WeakSet()

    def close_all() -> None:
        for connection in list(connections):
            connection.close()

    os.register_at_fork(after_in_child=close_all)
    return connections


def raise_nofile_limit(num_files: int) -> None:
    """Raise the soft limit of open files (often 1024) to `num_files`, if the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num_files:
        limit = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
