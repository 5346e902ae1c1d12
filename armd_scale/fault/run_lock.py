"""The lock of a run folder: one job at a time writes checkpoints and metrics there.

The lock is a file with the identity of its holder, created exclusively, which also works on NFS,
where the kernel's file locks may not. A holder that was killed leaves it behind, so a lock counts
only until its holder is proven to be gone:

- on this machine, by its process number and start time;
- under Slurm, if this is a later start of the same job, because Slurm ends one before the next;
- otherwise by watching: a living holder renews the time of the file every few seconds.
"""

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from armd_scale.errors import TrainingError
from armd_scale.log import get_logger
from armd_scale.parallel.environment import slurm_job

LOCK_FILE = "lock.json"
RENEWAL_SECONDS = 10.0
WATCH_SECONDS = 90.0
"""How long a lock of another machine must stay as it is until it counts as left behind."""


@dataclass(frozen=True, kw_only=True)
class LockHolder:
    """Who holds a lock; everything is None in a lock that cannot be read."""

    host: str | None = None
    pid: int | None = None
    machine: str | None = None
    """Boot of the machine and PID namespace, in which `pid` is meant."""
    process_start: str | None = None
    """Start time of the process in clock ticks since boot; tells it from a later one of its PID."""
    job: str | None = None
    """Slurm job, if it is one."""
    restarts: int | None = None
    """How often Slurm has started that job again."""
    since: str | None = None
    """Local time at which the lock was taken."""
    token: str | None = None
    """Random text that no other lock has."""

    def __str__(self) -> str:
        job = "" if self.job is None else f", Slurm job {self.job}"
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class RunLock:
    """Holds the lock of a run folder from its creation until `release`.

    Args:
        folder: the run folder, which exists.
        watch_seconds: as of `WATCH_SECONDS`.

    Raises:
        TrainingError: another job holds the lock.
        OSError: the lock file cannot be written.
    """

    def __init__(self, folder: Path, *, watch_seconds: float = WATCH_SECONDS) -> None:
        self._path = folder / LOCK_FILE
        self._holder = _this_process()
        self._new_holder: LockHolder | None = None
        self._acquire(watch_seconds)
        self._released = threading.Event()
        threading.Thread(target=self._renew, name="run lock", daemon=True).start()

    def check(self) -> None:
        """Check that this process still holds the lock.

        Raises:
            TrainingError: another job has taken it, after this process was suspended for longer
                than it was watched.
        """
        if self._new_holder is not None:
            raise _in_use(self._path, self._new_holder)

    def release(self) -> None:
        """Remove the lock file if it is still this process's."""
        self._released.set()
        # A forked child has a copy of this object.
        if os.getpid() == self._holder.pid and _read(self._path) == self._holder:
            self._path.unlink(missing_ok=True)

    def _acquire(self, watch_seconds: float) -> None:
        while not self._create():
            holder = _read(self._path)
            if holder is None:  # released in this moment
                continue
            if not _is_gone(holder) and not self._stays_unchanged(holder, watch_seconds):
                raise _in_use(self._path, holder)
            self._break(holder)

    def _create(self) -> bool:
        try:
            file = self._path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        with file:
            json.dump(asdict(self._holder), file)
        return True

    def _stays_unchanged(self, holder: LockHolder, seconds: float) -> bool:
        """Watch the lock of a process that cannot be looked up from here."""
        if holder.machine == self._holder.machine:
            return False  # it was looked up, and it is there
        before = _version(self._path)
        get_logger(__name__).warning(
            "%s was left by %s: watching for %g s whether it is still renewed",
            self._path,
            holder,
            seconds,
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, seconds / 10))
            if _version(self._path) != before:
                return False
        return True

    def _break(self, holder: LockHolder) -> None:
        """Remove the lock of a holder that is gone, unless another job has just done so."""
        # Renamed first and looked at again: between reading and removing it, another starting job
        # may have put its own lock there.
        aside = self._path.with_name(f".{LOCK_FILE}.{self._holder.token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        if _read(aside) != holder:
            aside.rename(self._path)
            return
        aside.unlink()
        get_logger(__name__).warning("removed a lock that %s has left behind", holder)

    def _renew(self) -> None:
        while not self._released.wait(RENEWAL_SECONDS):
            try:
                found = _read(self._path)
                if found == self._holder:
                    os.utime(self._path)
                elif found is not None:
                    self._new_holder = found
                    return
                else:  # someone has removed it; the next round tells if another job has taken it
                    self._create()
            except OSError as error:  # an outage of the file system; renewed when it is back
                get_logger(__name__).warning("cannot renew %s (%s)", self._path, error.strerror)


def _read(path: Path) -> LockHolder | None:
    """The holder in a lock file; an empty one if it is unreadable, None if there is no file."""
    try:
        values = json.loads(path.read_bytes())
        holder = LockHolder(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):  # killed before it was written, or not ours
        return LockHolder()
    return holder


def _version(path: Path) -> Any:
    """What changes when the lock is renewed or changes hands."""
    try:
        # Opened, because an NFS client asks the server for the present attributes then.
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _is_gone(holder: LockHolder) -> bool:
    """Whether there is proof that the holder does not run any more."""
    ours = _this_process()
    if holder.pid is not None and holder.machine == ours.machine:
        start = _process_start(holder.pid)
        return start is None or start != holder.process_start
    return (
        ours.job is not None
        and holder.job == ours.job
        and (holder.restarts or 0) < (ours.restarts or 0)
    )


def _this_process() -> LockHolder:
    job, restarts = slurm_job()
    return LockHolder(
        host=socket.gethostname(),
        pid=os.getpid(),
        machine=_machine(),
        process_start=_process_start(os.getpid()),
        job=job,
        restarts=restarts,
        since=datetime.now().isoformat(timespec="seconds"),
        token=secrets.token_hex(8),
    )


def _machine() -> str | None:
    """The boot of this machine and the PID namespace of this process; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return None


def _process_start(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; None if it has ended."""
    try:
        # The name in parentheses may itself contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return None if state in "ZX" else start  # ended, but not yet waited for by its parent


def _in_use(path: Path, holder: LockHolder) -> TrainingError:
    return TrainingError(
        f"run.folder must be used by one job at a time, and {path.parent} is in use ({holder}): "
        "wait for that job, stop it, or choose another run.folder"
    )
