"""The lock of a run folder: one holder, named; broken only when the holder is gone."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from armd_scale.errors import TrainingError
from armd_scale.fault import run_lock
from armd_scale.fault.run_lock import LOCK_FILE, LockHolder, RunLock
from tests.support.processes import FORKSERVER


def hold(folder: Path, taken: Callable[[], None]) -> None:
    RunLock(folder)
    taken()
    signal.pause()


@pytest.fixture
def other_holder(tmp_path: Path) -> BaseProcess:
    """Another process, which holds the lock."""
    taken = FORKSERVER.Event()
    process = FORKSERVER.Process(target=hold, args=(tmp_path, taken.set), daemon=True)
    process.start()
    assert taken.wait(60)
    return process


def write_lock(folder: Path, **changes: object) -> LockHolder:
    """A lock of a process on a machine that cannot be asked."""
    holder = LockHolder(host="node07", pid=812, machine="elsewhere", process_start="5", token="t")
    holder = replace(holder, **changes)
    (folder / LOCK_FILE).write_text(json.dumps(vars(holder)))
    return holder


def test_the_lock_is_released(tmp_path: Path) -> None:
    for _ in range(2):
        lock = RunLock(tmp_path)
        lock.check()
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_the_holder_is_named(tmp_path: Path, other_holder: BaseProcess) -> None:
    with pytest.raises(TrainingError) as caught:
        RunLock(tmp_path)
    assert f"process {other_holder.pid} on {os.uname().nodename}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_this_process_is_a_holder_too(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(TrainingError, match=f"process {os.getpid()}"):
        RunLock(tmp_path)
    lock.release()


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path, other_holder: BaseProcess) -> None:
    assert other_holder.pid is not None
    os.kill(other_holder.pid, signal.SIGKILL)
    # Not waited for yet: until then the system still lists the process.
    stat = Path(f"/proc/{other_holder.pid}/stat")
    while stat.exists() and " Z " not in stat.read_text():
        time.sleep(0.01)
    RunLock(tmp_path, watch_seconds=1e9).release()


def test_a_later_process_of_the_same_number_is_no_holder(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    values = json.loads((tmp_path / LOCK_FILE).read_text())
    lock.release()
    (tmp_path / LOCK_FILE).write_text(json.dumps({**values, "process_start": "1", "token": "u"}))
    RunLock(tmp_path, watch_seconds=1e9).release()


def test_a_lock_of_another_machine_is_broken_if_nobody_renews_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_lock(tmp_path)
    RunLock(tmp_path, watch_seconds=0.2).release()
    assert "process 812 on node07" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b'{"a": 1}', b"\xff"])
def test_an_unreadable_lock_is_broken_if_nobody_renews_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    RunLock(tmp_path, watch_seconds=0.2).release()


def test_a_lock_of_another_machine_counts_while_it_is_renewed(tmp_path: Path) -> None:
    write_lock(tmp_path, job="77")
    renewing = multiprocessing.get_context("fork").Process(target=renew, args=(tmp_path,))
    renewing.start()
    with pytest.raises(TrainingError, match=r"process 812 on node07, Slurm job 77"):
        RunLock(tmp_path, watch_seconds=1e9)
    renewing.kill()
    renewing.join()


def renew(folder: Path) -> None:
    while True:
        time.sleep(0.2)
        os.utime(folder / LOCK_FILE)


@pytest.mark.parametrize(("restarts", "is_broken"), [("3", True), ("2", False)])
def test_slurm_starts_a_job_again_only_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, is_broken: bool
) -> None:
    write_lock(tmp_path, job="77", restarts=2)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    if is_broken:
        RunLock(tmp_path, watch_seconds=1e9).release()
    else:
        monkeypatch.setattr(run_lock.time, "sleep", lambda _: os.utime(tmp_path / LOCK_FILE))
        with pytest.raises(TrainingError, match="in use"):
            RunLock(tmp_path)


def test_a_holder_whose_lock_was_taken_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "RENEWAL_SECONDS", 0.05)
    lock = RunLock(tmp_path)
    write_lock(tmp_path)
    deadline = time.monotonic() + 30
    while lock._new_holder is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(TrainingError, match="process 812 on node07"):
        lock.check()
    lock.release()
    assert (tmp_path / LOCK_FILE).exists()  # it is the other job's


def test_a_lock_that_someone_removed_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "RENEWAL_SECONDS", 0.05)
    lock = RunLock(tmp_path)
    (tmp_path / LOCK_FILE).unlink()
    deadline = time.monotonic() + 30
    while not (tmp_path / LOCK_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    lock.check()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_job_has_just_replaced_is_left_alone(tmp_path: Path) -> None:
    gone = write_lock(tmp_path)
    lock = RunLock(tmp_path, watch_seconds=0.2)
    lock._break(gone)  # what a second starting job does that had read the old lock
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == lock._holder.token
    lock.release()
    assert list(tmp_path.iterdir()) == []
