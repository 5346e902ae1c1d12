"""FailureDetector against plain sockets: many ranks, late ranks, the first loss, open files."""

import json
import resource
import socket
from contextlib import ExitStack, suppress

import pytest

from armd_scale.fault.coordinator import FailureDetector
from armd_scale.fault.json_socket import encode_line, encode_registration, receive_lines


def register(stack, detector, rank):
    """Connect to the detector as a rank."""
    connection = stack.enter_context(socket.create_connection(("localhost", detector.port)))
    connection.settimeout(20)
    connection.sendall(encode_registration(detector.token, rank=rank, name=f"rank {rank}"))
    return connection


def test_300_ranks_all_receive_the_outcome_of_one_loss():
    size = 300
    with ExitStack() as stack:
        detector = FailureDetector(size, keepalive_timeout_seconds=60)
        peers = [register(stack, detector, rank) for rank in range(size)]
        peers.pop(77).close()
        lines = {next(receive_lines(peer)) for peer in peers}
        assert len(lines) == 1
        outcome = json.loads(lines.pop())["outcome"]
        assert "rank 77 is gone" in outcome["failure"]
        assert outcome["is_gone"]


def test_only_the_first_failure_is_reported_also_to_a_rank_that_registers_later():
    with ExitStack() as stack:
        detector = FailureDetector(4, keepalive_timeout_seconds=60)
        peers = [register(stack, detector, rank) for rank in range(3)]
        peers[1].close()
        outcome = next(receive_lines(peers[0]))
        assert b"rank 1 is gone" in outcome
        peers[2].sendall(encode_line(failed="ValueError: collective failed"))
        assert next(receive_lines(register(stack, detector, 3))) == outcome


def test_a_rank_that_closes_after_finishing_is_not_lost():
    with ExitStack() as stack:
        detector = FailureDetector(2, keepalive_timeout_seconds=60)
        first, second = (register(stack, detector, rank) for rank in range(2))
        second.sendall(encode_line(finished=True))
        second.close()
        first.sendall(encode_line(finished=True))
        assert json.loads(next(receive_lines(first))) == {
            "outcome": {"failure": None, "is_gone": False, "is_hung": False}
        }
        detector.wait_until_finished()


def test_a_rank_that_closes_before_its_line_is_complete_is_lost():
    with ExitStack() as stack:
        detector = FailureDetector(2, keepalive_timeout_seconds=60)
        first, second = (register(stack, detector, rank) for rank in range(2))
        second.sendall(encode_line(finished=True).rstrip(b"\n"))
        second.close()
        assert b"rank 1 is gone" in next(receive_lines(first))


def finish(detector, peers):
    for peer in peers:
        peer.sendall(encode_line(finished=True))
    for peer in peers:
        assert json.loads(next(receive_lines(peer)))["outcome"]["failure"] is None
    detector.wait_until_finished()


@pytest.mark.parametrize(
    "greeting",
    [
        b"[" * 60_000 + b"\n",
        b'{"token": "0", "rank": 0, "name": ""}\n',
        b"0" * 32 + b' {"rank": 0, "name": ""}\n',
        b"\xff\n" * 1000,
        b"x" * 100_000,
        b"\n",
    ],
)
def test_a_stranger_is_disconnected_before_anything_is_parsed(greeting):
    with ExitStack() as stack:
        detector = FailureDetector(2, keepalive_timeout_seconds=60)
        peers = [register(stack, detector, 0)]
        stranger = stack.enter_context(socket.create_connection(("localhost", detector.port)))
        stranger.settimeout(20)
        with suppress(OSError):
            stranger.sendall(greeting)
            assert stranger.recv(1) == b""
        peers.append(register(stack, detector, 1))
        finish(detector, peers)


def test_many_idle_connections_neither_end_nor_deafen_the_detector():
    with ExitStack() as stack:
        detector = FailureDetector(2, keepalive_timeout_seconds=60)
        address = ("localhost", detector.port)
        peers = [register(stack, detector, 0)]
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(300)]
        peers.append(register(stack, detector, 1))
        finish(detector, peers)
        idle[0].settimeout(20)
        with suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""


def test_a_detector_of_one_machine_is_not_reachable_from_others():
    detector = FailureDetector(1, keepalive_timeout_seconds=60)
    assert detector._listener.getsockname()[0] == "127.0.0.1"


def test_the_open_file_limit_is_raised_for_large_jobs():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
    try:
        FailureDetector(4, keepalive_timeout_seconds=60)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600
        FailureDetector(100, keepalive_timeout_seconds=60)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 712
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
