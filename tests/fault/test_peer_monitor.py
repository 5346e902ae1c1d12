"""Real processes that are killed, fail, hang or finish: the other ranks name the failed one."""

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback

import psutil
import pytest
import torch
import torch.distributed as dist

from armd_scale.errors import TrainingError
from armd_scale.fault.peer_monitor import EXIT_PEER_LOST, FailureTimeouts, monitor_peers
from armd_scale.fault.watchdog import Watchdog
from armd_scale.parallel.environment import DistributedEnv
from tests.support.processes import FORKSERVER

pytestmark = pytest.mark.slow(minutes=2)

SHORT = FailureTimeouts(
    keepalive_timeout_seconds=3,
    diagnosis_timeout_seconds=5.0,
    exit_grace_seconds=1.0,
    cleanup_timeout_seconds=1.0,
)
FOREVER_SECONDS = 600


def rank_environment(rank, size):
    return DistributedEnv(
        rank=rank,
        world_size=size,
        local_rank=rank,
        device=torch.device("cpu"),
        host=f"host{rank}",
        master_addr="127.0.0.1",
    )


class Job:
    """Processes that run `work(rank, size)` inside `monitor_peers`, with their stderr in files."""

    def __init__(self, work, size, folder, *, timeouts=SHORT, hang_timeout_seconds=0.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder = folder
        settings = (port, folder, timeouts, hang_timeout_seconds)
        jobs = [(work, rank, size, *settings) for rank in range(size)]
        self.processes = [FORKSERVER.Process(target=run, args=job) for job in jobs]
        for process in self.processes:
            process.start()

    def wait_until_running(self, seconds=60):
        deadline = time.monotonic() + seconds
        while len(list(self.folder.glob("*.running"))) < len(self.processes):
            assert time.monotonic() < deadline, self.all_stderr()
            assert all(process.is_alive() for process in self.processes), self.all_stderr()
            time.sleep(0.02)

    def kill(self, rank, number=signal.SIGKILL):
        os.kill(self.processes[rank].pid, number)

    def statuses(self, seconds=30):
        """Return the exit statuses (None: still alive), and kill the processes that are left."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return statuses

    def stderr(self, rank):
        return (self.folder / f"{rank}.stderr").read_text()

    def all_stderr(self):
        return [self.stderr(rank) for rank in range(len(self.processes))]


def run(work, rank, size, port, folder, timeouts, hang_timeout_seconds):
    torch.set_num_threads(1)
    stderr = (folder / f"{rank}.stderr").open("w")
    os.dup2(stderr.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    watchdog = Watchdog(folder, rank=rank, hang_timeout_seconds=hang_timeout_seconds)
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", port, is_master=rank == 0, wait_for_workers=False
    )
    dist.init_process_group("gloo", rank=rank, world_size=size, store=store)
    try:
        with monitor_peers(rank_environment(rank, size), timeouts=timeouts, watchdog=watchdog):
            dist.barrier()
            (folder / f"{rank}.running").touch()
            work(rank, size, *[watchdog] * bool(hang_timeout_seconds))
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def in_collectives(rank, size):
    while True:
        dist.all_reduce(torch.ones(1000))


def in_python(rank, size):
    while True:
        time.sleep(0.01)


def in_c_code(rank, size):
    ctypes.CDLL(None).sleep(FOREVER_SECONDS)


def with_forked_child(rank, size):
    """Fork a data worker that outlives its parent."""
    context = multiprocessing.get_context("fork")
    context.Process(target=time.sleep, args=(FOREVER_SECONDS,)).start()
    in_python(rank, size)


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("work", [in_collectives, in_python, in_c_code])
def test_the_other_ranks_name_a_killed_rank_and_exit(tmp_path, work, victim):
    job = Job(work, 3, tmp_path)
    job.wait_until_running()
    pid = job.processes[victim].pid
    job.kill(victim)
    assert job.statuses(10) == [-9 if rank == victim else EXIT_PEER_LOST for rank in range(3)]
    for rank in {0, 1, 2} - {victim}:
        stderr = job.stderr(rank)
        assert f"rank {victim} (process {pid} on host{victim}) is gone" in stderr
        assert stderr.count("is gone") == 1, stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_noticed_while_its_forked_children_are_alive(tmp_path, victim):
    job = Job(with_forked_child, 2, tmp_path)
    job.wait_until_running()
    time.sleep(0.5)  # until the children have started
    children = psutil.Process(job.processes[victim].pid).children()
    other_children = psutil.Process(job.processes[1 - victim].pid).children()
    try:
        job.kill(victim)
        assert job.statuses(10)[1 - victim] == EXIT_PEER_LOST
        assert len(children) == 1
        assert children[0].is_running()
        assert f"rank {victim} (" in job.stderr(1 - victim)
    finally:
        for child in children + other_children:
            child.kill()


def test_with_default_timeouts_the_other_ranks_exit_within_20_seconds(tmp_path):
    job = Job(in_c_code, 3, tmp_path, timeouts=FailureTimeouts())
    job.wait_until_running()
    job.kill(1)
    start = time.monotonic()
    assert job.statuses(30) == [EXIT_PEER_LOST, -9, EXIT_PEER_LOST]
    assert time.monotonic() - start < 20
    assert all("rank 1 (" in job.stderr(rank) for rank in (0, 2))


def finish_at_different_times(rank, size):
    time.sleep(0.5 * rank)


def test_ranks_that_finish_normally_are_not_lost(tmp_path):
    job = Job(finish_at_different_times, 4, tmp_path)
    assert job.statuses() == [0] * 4
    assert job.all_stderr() == [""] * 4


def monitor_twice(rank, size):
    """Enter `monitor_peers` again under the same process groups."""
    with monitor_peers(rank_environment(rank, size), timeouts=SHORT):
        dist.barrier()


def test_peers_can_be_monitored_twice_in_one_process(tmp_path):
    assert Job(monitor_twice, 2, tmp_path).statuses() == [0, 0]


def bad_row_on_rank_1(rank, size):
    if rank == 1:
        raise ValueError("bad row")
    in_collectives(rank, size)


def bad_row_on_rank_0(rank, size):
    if rank == 0:
        raise ValueError("bad row")
    in_c_code(rank, size)


@pytest.mark.parametrize(("work", "failing"), [(bad_row_on_rank_0, 0), (bad_row_on_rank_1, 1)])
def test_a_failing_rank_shows_its_traceback_and_the_others_name_it(tmp_path, work, failing):
    job = Job(work, 3, tmp_path)
    assert job.statuses() == [1 if rank == failing else EXIT_PEER_LOST for rank in range(3)]
    stderr = job.stderr(failing)
    assert "Traceback" in stderr
    assert work.__name__ in stderr
    assert "ValueError: bad row" in stderr
    assert "rerun the same command" not in stderr
    for rank in {0, 1, 2} - {failing}:
        message = f"on host{failing}) failed: ValueError: bad row. Fix the error above"
        assert message in job.stderr(rank)
        assert f"rank {failing} (" in job.stderr(rank)


def fail_on_every_rank(rank, size):
    time.sleep(0.2 * rank)
    raise TrainingError("the loss must be finite")


def test_ranks_that_raise_the_same_error_all_show_their_own(tmp_path):
    job = Job(fail_on_every_rank, 3, tmp_path)
    assert job.statuses() == [1, 1, 1]
    for rank in range(3):
        assert "TrainingError: the loss must be finite" in job.stderr(rank)
        assert "rerun the same command" not in job.stderr(rank)


def broken_connection(rank, size):
    """A collective fails although no rank has died."""
    if rank == 1:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    in_python(rank, size)


def test_a_collective_error_is_raised_if_no_rank_has_died(tmp_path):
    job = Job(broken_connection, 2, tmp_path)
    assert job.statuses() == [EXIT_PEER_LOST, 1]
    assert "Connection reset by peer" in job.stderr(1)
    assert "rank 1 (" in job.stderr(0)


def stay_busy(rank, size):
    """Run C code, with and without the GIL, for twice the keepalive timeout."""
    if rank == 1:
        ctypes.PyDLL(None).sleep(2 * SHORT.keepalive_timeout_seconds)
    if rank == 2:
        ctypes.CDLL(None).sleep(2 * SHORT.keepalive_timeout_seconds)


def test_a_busy_rank_is_not_lost(tmp_path):
    assert Job(stay_busy, 3, tmp_path).statuses() == [0, 0, 0]


def test_a_rank_that_is_stopped_for_a_while_is_not_lost_without_hang_detection(tmp_path):
    job = Job(finish_at_different_times, 2, tmp_path)
    job.wait_until_running()
    job.kill(1, signal.SIGSTOP)
    time.sleep(2 * SHORT.keepalive_timeout_seconds)
    job.kill(1, signal.SIGCONT)
    assert job.statuses() == [0, 0]


def other_programs_connect(rank, size):
    """Send rank 0's port what a port scanner or an HTTP client would."""
    if rank == 0:
        ports = {c.laddr.port for c in psutil.Process().net_connections() if c.status == "LISTEN"}
        for port in ports:
            for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"x" * 200_000):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(greeting)
    time.sleep(1)


def test_connections_without_the_token_are_ignored(tmp_path):
    assert Job(other_programs_connect, 2, tmp_path).statuses() == [0, 0]


def test_a_job_of_one_process_starts_no_thread():
    num_threads = threading.active_count()
    with monitor_peers(rank_environment(0, 1)):
        assert threading.active_count() == num_threads


def behind_a_firewall(rank, size):
    environment = dataclasses.replace(rank_environment(rank, size), master_addr="rank0.invalid")
    with monitor_peers(environment, timeouts=SHORT):
        pass


def test_an_unreachable_rank_0_is_an_error_with_its_address(tmp_path):
    job = Job(behind_a_firewall, 2, tmp_path)
    assert job.statuses() == [1, 1]
    assert "TrainingError: every rank must be able to reach rank 0, but rank 1 (" in job.stderr(1)
    assert "of rank0.invalid (" in job.stderr(1)


def test_an_interrupted_rank_is_named(tmp_path):
    job = Job(in_python, 2, tmp_path)
    job.wait_until_running()
    job.kill(1, signal.SIGINT)
    assert job.statuses() == [EXIT_PEER_LOST, 1]
    assert "failed: KeyboardInterrupt" in job.stderr(0)


HANG_SECONDS = 3.0


def hang_on_rank_1(rank, size, watchdog):
    """Rank 1 hangs while it waits for the data of step 3; the other ranks wait for it."""
    for step in range(1000):
        watchdog.set_phase("wait_for_data", step)
        if size > 1 and rank == 1 and step == 3:
            ctypes.CDLL(None).sleep(FOREVER_SECONDS)
        watchdog.set_phase("forward_backward")
        dist.all_reduce(torch.ones(1000))


def test_a_hung_rank_is_named_with_its_phase(tmp_path):
    job = Job(hang_on_rank_1, 3, tmp_path, hang_timeout_seconds=HANG_SECONDS)
    job.wait_until_running()
    start = time.monotonic()
    assert job.statuses(30) == [EXIT_PEER_LOST] * 3
    assert time.monotonic() - start < HANG_SECONDS + 10
    for rank in range(3):
        name = f"rank 1 (process {job.processes[1].pid} on host1)"
        message = f"{name} has been in phase 'wait_for_data, step 3' for "
        assert message in job.stderr(rank)
        assert "test_peer_monitor.py" in (tmp_path / "stacks" / f"rank_{rank}.txt").read_text()


def work_forever(rank, size, watchdog):
    while True:
        for step in range(100):
            watchdog.set_phase("work", step)
            dist.all_reduce(torch.ones(1000))


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_rank_is_named_with_hang_detection(tmp_path, victim):
    job = Job(work_forever, 3, tmp_path, hang_timeout_seconds=HANG_SECONDS)
    job.wait_until_running()
    os.kill(job.processes[victim].pid, signal.SIGSTOP)
    others = {0, 1, 2} - {victim}
    start = time.monotonic()
    for rank in others:
        job.processes[rank].join(HANG_SECONDS + 10)
    assert time.monotonic() - start < HANG_SECONDS + 10
    for rank in others:
        assert job.processes[rank].exitcode == EXIT_PEER_LOST
        assert f"rank {victim} (" in job.stderr(rank)
        assert "longer than train.hang_timeout_seconds" in job.stderr(rank)
        assert (tmp_path / "stacks" / f"rank_{rank}.txt").read_text()
    job.statuses(0)


def work_slowly(rank, size, watchdog):
    """Exceed the hang timeout in total but in no phase; one rank in C code that holds the GIL."""
    for step in range(8):
        watchdog.set_phase("work", step)
        (ctypes.PyDLL if rank else ctypes.CDLL)(None).usleep(int(0.2 * HANG_SECONDS * 1e6))
        dist.barrier()


def test_a_slow_rank_does_not_count_as_hung(tmp_path):
    assert Job(work_slowly, 2, tmp_path, hang_timeout_seconds=HANG_SECONDS).statuses() == [0, 0]


def hang_alone(rank, size, watchdog):
    watchdog.set_phase("saving", 7)
    in_python(rank, size)


def test_a_job_of_one_process_ends_when_it_hangs(tmp_path):
    job = Job(hang_alone, 1, tmp_path, hang_timeout_seconds=HANG_SECONDS)
    assert job.statuses(30) == [EXIT_PEER_LOST]
    assert "has been in phase 'saving, step 7' for" in job.stderr(0)
