"""The roll against plain sockets: many processes, late ones, the first loss, the open files."""

import json
import resource
import socket
from contextlib import ExitStack

from armd_scale.fault.coordinator import FailureDetector
from armd_scale.fault.json_socket import message, receive_lines


def enrolled(stack, roll, rank):
    connection = stack.enter_context(socket.create_connection(("localhost", roll.port)))
    connection.settimeout(20)
    connection.sendall(message(token=roll.token, rank=rank, who=f"rank {rank}"))
    return connection


def test_hundreds_hear_of_one_loss():
    size = 300
    with ExitStack() as stack:
        roll = FailureDetector(size, silent=60)
        members = [enrolled(stack, roll, rank) for rank in range(size)]
        members.pop(77).close()
        heard = {next(receive_lines(member)) for member in members}
        assert len(heard) == 1
        verdict = json.loads(heard.pop())
        assert "rank 77 is gone" in verdict["lost"]
        assert verdict["is_gone"]


def test_the_first_loss_is_named_and_a_late_process_hears_of_it():
    with ExitStack() as stack:
        roll = FailureDetector(4, silent=60)
        members = [enrolled(stack, roll, rank) for rank in range(3)]
        members[1].close()
        verdict = next(receive_lines(members[0]))
        assert b"rank 1 is gone" in verdict
        members[2].sendall(message(failed="ValueError: collective failed"))
        assert next(receive_lines(enrolled(stack, roll, 3))) == verdict


def test_a_process_that_came_to_its_end_is_not_missed():
    with ExitStack() as stack:
        roll = FailureDetector(2, silent=60)
        first, second = (enrolled(stack, roll, rank) for rank in range(2))
        second.sendall(message(leaving=True))
        second.close()
        first.sendall(message(leaving=True))
        assert json.loads(next(receive_lines(first))) == {"lost": None}
        roll.finish()


def test_a_process_that_ends_between_its_lines_is_missed():
    with ExitStack() as stack:
        roll = FailureDetector(2, silent=60)
        first, second = (enrolled(stack, roll, rank) for rank in range(2))
        second.sendall(message(leaving=True).rstrip(b"\n"))
        second.close()
        assert b"rank 1 is gone" in next(receive_lines(first))


def test_the_limit_of_open_files_grows_with_the_job():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
    try:
        FailureDetector(4, silent=60)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600
        FailureDetector(100, silent=60)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 712
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
