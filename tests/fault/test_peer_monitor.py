"""Real processes that are killed, fail, dawdle or end: the others say who, or say nothing."""

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

BRIEF = FailureTimeouts(
    keepalive_timeout_seconds=3,
    diagnosis_timeout_seconds=5.0,
    exit_grace_seconds=1.0,
    cleanup_timeout_seconds=1.0,
)
FOREVER_SECONDS = 600


def place(rank, size):
    return DistributedEnv(
        rank=rank,
        world_size=size,
        local_rank=rank,
        device=torch.device("cpu"),
        host=f"host{rank}",
        master_addr="127.0.0.1",
    )


class Job:
    """Processes that run `work(rank, size)` under watch, their stderr in files."""

    def __init__(self, work, size, folder, *, patience=BRIEF, hang_timeout_seconds=0):
        # Processes of a server that has imported everything start in a tenth of a second.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.preload"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder = folder
        settings = (port, folder, patience, hang_timeout_seconds)
        jobs = [(work, rank, size, *settings) for rank in range(size)]
        self.processes = [context.Process(target=run, args=job) for job in jobs]
        for process in self.processes:
            process.start()

    def wait_until_at_work(self, seconds=60):
        end = time.monotonic() + seconds
        while len(list(self.folder.glob("*.at_work"))) < len(self.processes):
            assert time.monotonic() < end, [self.said(rank) for rank in range(len(self.processes))]
            time.sleep(0.02)

    def kill(self, rank):
        os.kill(self.processes[rank].pid, signal.SIGKILL)

    def statuses(self, seconds=30):
        """Exit statuses, None for a process that lives on."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        found = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return found

    def said(self, rank):
        return (self.folder / f"{rank}.stderr").read_text()


def run(work, rank, size, port, folder, patience, hang_timeout_seconds):
    watchdog = Watchdog(folder, rank=rank, hang_timeout_seconds=hang_timeout_seconds)
    torch.set_num_threads(1)
    errors = (folder / f"{rank}.stderr").open("w")
    os.dup2(errors.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    dist.init_process_group("gloo", rank=rank, world_size=size, store=store)
    try:
        with monitor_peers(place(rank, size), patience=patience, pulse=watchdog):
            dist.barrier()
            (folder / f"{rank}.at_work").touch()
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


def with_a_child(rank, size):
    """A data worker that outlives its process by far."""
    context = multiprocessing.get_context("fork")
    context.Process(target=time.sleep, args=(FOREVER_SECONDS,)).start()
    in_python(rank, size)


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("work", [in_collectives, in_python, in_c_code])
def test_a_killed_process_is_named_and_the_others_end(tmp_path, work, victim):
    job = Job(work, 3, tmp_path)
    job.wait_until_at_work()
    pid = job.processes[victim].pid
    job.kill(victim)
    assert job.statuses(10) == [-9 if rank == victim else EXIT_PEER_LOST for rank in range(3)]
    for rank in {0, 1, 2} - {victim}:
        said = job.said(rank)
        assert f"rank {victim} (process {pid} on host{victim}) is gone" in said
        assert said.count("must live until its end") == 1, said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_missed_though_its_children_live(tmp_path, victim):
    job = Job(with_a_child, 2, tmp_path)
    job.wait_until_at_work()
    time.sleep(0.5)  # the children start
    children = psutil.Process(job.processes[victim].pid).children()
    other = psutil.Process(job.processes[1 - victim].pid).children()
    try:
        job.kill(victim)
        assert job.statuses(10)[1 - victim] == EXIT_PEER_LOST
        assert len(children) == 1
        assert children[0].is_running()
        assert f"rank {victim} (" in job.said(1 - victim)
    finally:
        for child in children + other:
            child.kill()


def test_as_shipped_the_others_end_within_30_seconds(tmp_path):
    job = Job(in_c_code, 3, tmp_path, patience=FailureTimeouts())
    job.wait_until_at_work()
    job.kill(1)
    start = time.monotonic()
    assert job.statuses(30) == [EXIT_PEER_LOST, -9, EXIT_PEER_LOST]
    assert time.monotonic() - start < 20
    assert all("rank 1 (" in job.said(rank) for rank in (0, 2))


def at_different_times(rank, size):
    time.sleep(0.5 * rank)


def test_a_normal_end_is_not_a_loss(tmp_path):
    job = Job(at_different_times, 4, tmp_path)
    assert job.statuses() == [0] * 4
    assert [job.said(rank) for rank in range(4)] == [""] * 4


def twice(rank, size):
    """A second job under the same process groups, inside the first."""
    with monitor_peers(place(rank, size), patience=BRIEF):
        dist.barrier()


def test_a_job_can_be_watched_again(tmp_path):
    assert Job(twice, 2, tmp_path).statuses() == [0, 0]


def bad_row_on_rank_1(rank, size):
    if rank == 1:
        raise ValueError("bad row")
    in_collectives(rank, size)


def bad_row_on_rank_0(rank, size):
    if rank == 0:
        raise ValueError("bad row")
    in_c_code(rank, size)


@pytest.mark.parametrize(("work", "failing"), [(bad_row_on_rank_0, 0), (bad_row_on_rank_1, 1)])
def test_an_error_of_its_own_keeps_its_traceback_and_the_others_name_it(tmp_path, work, failing):
    job = Job(work, 3, tmp_path)
    assert job.statuses() == [1 if rank == failing else EXIT_PEER_LOST for rank in range(3)]
    said = job.said(failing)
    assert "Traceback" in said
    assert work.__name__ in said
    assert "ValueError: bad row" in said
    assert "must live until its end" not in said
    for rank in {0, 1, 2} - {failing}:
        sentence = f"on host{failing}) failed with ValueError: bad row"
        assert sentence in job.said(rank)
        assert f"rank {failing} (" in job.said(rank)


def everywhere(rank, size):
    time.sleep(0.2 * rank)
    raise TrainingError("the loss must be finite")


def test_an_error_that_all_meet_is_everyone_s_own(tmp_path):
    job = Job(everywhere, 3, tmp_path)
    assert job.statuses() == [1, 1, 1]
    for rank in range(3):
        assert "TrainingError: the loss must be finite" in job.said(rank)
        assert "must live until its end" not in job.said(rank)


def broken_pair(rank, size):
    """A collective fails though nobody is gone."""
    if rank == 1:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    in_python(rank, size)


def test_a_broken_connection_that_nobody_s_death_explains_is_raised(tmp_path):
    job = Job(broken_pair, 2, tmp_path)
    assert job.statuses() == [EXIT_PEER_LOST, 1]
    assert "Connection reset by peer" in job.said(1)
    assert "rank 1 (" in job.said(0)


def one_is_busy(rank, size):
    """Twice as long as a silent machine is waited for: in C code with and without the GIL."""
    if rank == 1:
        ctypes.PyDLL(None).sleep(2 * BRIEF.keepalive_timeout_seconds)
    if rank == 2:
        ctypes.CDLL(None).sleep(2 * BRIEF.keepalive_timeout_seconds)


def test_a_busy_process_is_not_taken_for_dead(tmp_path):
    assert Job(one_is_busy, 3, tmp_path).statuses() == [0, 0, 0]


def test_a_stopped_process_is_not_taken_for_dead(tmp_path):
    job = Job(at_different_times, 2, tmp_path)
    job.wait_until_at_work()
    os.kill(job.processes[1].pid, signal.SIGSTOP)
    time.sleep(2 * BRIEF.keepalive_timeout_seconds)
    os.kill(job.processes[1].pid, signal.SIGCONT)
    assert job.statuses() == [0, 0]


def strangers_call(rank, size):
    """Another program takes rank 0's port for its own."""
    if rank == 0:
        ports = {c.laddr.port for c in psutil.Process().net_connections() if c.status == "LISTEN"}
        for port in ports:
            for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"x" * 200_000):
                with socket.create_connection(("127.0.0.1", port)) as call:
                    call.sendall(greeting)
    time.sleep(1)


def test_strangers_are_not_listened_to(tmp_path):
    assert Job(strangers_call, 2, tmp_path).statuses() == [0, 0]


def test_a_job_of_one_process_starts_nothing():
    before = threading.active_count()
    with monitor_peers(place(0, 1)):
        assert threading.active_count() == before


def behind_a_firewall(rank, size):
    there = dataclasses.replace(place(rank, size), main_address="rank0.invalid")
    with monitor_peers(there, patience=BRIEF):
        pass


def test_rank_0_must_be_reachable(tmp_path):
    job = Job(behind_a_firewall, 2, tmp_path)
    assert job.statuses() == [1, 1]
    assert "TrainingError: every process must reach rank 0, and rank 1 (" in job.said(1)
    assert "of rank0.invalid (" in job.said(1)


def test_an_interrupted_process_is_named(tmp_path):
    job = Job(in_python, 2, tmp_path)
    job.wait_until_at_work()
    os.kill(job.processes[1].pid, signal.SIGINT)
    assert job.statuses() == [EXIT_PEER_LOST, 1]
    assert "failed with KeyboardInterrupt" in job.said(0)


HANG_SECONDS = 3.0


def in_steps(rank, size, watchdog):
    """Rank 1 never comes out of its third step's data; the others wait for it."""
    for step in range(1000):
        watchdog.begin("waiting for data", step)
        if size > 1 and rank == 1 and step == 3:
            ctypes.CDLL(None).sleep(FOREVER_SECONDS)
        watchdog.begin("in forward and backward passes")
        dist.all_reduce(torch.ones(1000))


def test_a_process_that_hangs_is_named_with_what_it_does(tmp_path):
    job = Job(in_steps, 3, tmp_path, hang_timeout_seconds=HANG_SECONDS)
    job.wait_until_at_work()
    start = time.monotonic()
    assert job.statuses(30) == [EXIT_PEER_LOST] * 3
    assert time.monotonic() - start < HANG_SECONDS + 10
    for rank in range(3):
        sentence = f"rank 1 (process {job.processes[1].pid} on host1) has been waiting for data in"
        assert f"{sentence} step 3 for " in job.said(rank)
        assert "test_liveness.py" in (tmp_path / "stacks" / f"rank_{rank}.txt").read_text()


def forever(rank, size, watchdog):
    while True:
        for step in range(100):
            watchdog.begin("at work", step)
            dist.all_reduce(torch.ones(1000))


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_process_is_named_where_the_pulse_is_watched(tmp_path, victim):
    job = Job(forever, 3, tmp_path, hang_timeout_seconds=HANG_SECONDS)
    job.wait_until_at_work()
    os.kill(job.processes[victim].pid, signal.SIGSTOP)
    others = {0, 1, 2} - {victim}
    start = time.monotonic()
    for rank in others:
        job.processes[rank].join(HANG_SECONDS + 10)
    assert time.monotonic() - start < HANG_SECONDS + 10
    for rank in others:
        assert job.processes[rank].exitcode == EXIT_PEER_LOST
        assert f"rank {victim} (" in job.said(rank)
        assert "longer than train.hang_timeout_seconds allows" in job.said(rank)
        assert (tmp_path / "stacks" / f"rank_{rank}.txt").read_text()
    job.statuses(0)


def slowly(rank, size, watchdog):
    """Longer than a hang in all, each piece shorter; in C code that holds the GIL too."""
    for step in range(8):
        watchdog.begin("at work", step)
        (ctypes.PyDLL if rank else ctypes.CDLL)(None).usleep(int(0.2 * HANG_SECONDS * 1e6))
        dist.barrier()


def test_a_slow_process_is_not_taken_to_hang(tmp_path):
    assert Job(slowly, 2, tmp_path, hang_timeout_seconds=HANG_SECONDS).statuses() == [0, 0]


def alone(rank, size, watchdog):
    watchdog.begin("saving", 7)
    in_python(rank, size)


def test_a_process_that_is_alone_ends_too_when_it_hangs(tmp_path):
    job = Job(alone, 1, tmp_path, hang_timeout_seconds=HANG_SECONDS)
    assert job.statuses(30) == [EXIT_PEER_LOST]
    assert "has been saving in step 7 for" in job.said(0)
