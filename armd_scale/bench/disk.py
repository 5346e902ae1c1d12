"""Bandwidth of a file system: loads of checkpoints compared with `dd`, without the page cache."""

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from armd_scale.errors import TrainingError

MIB = 1 << 20


@dataclass
class Transfer:
    """Time and source of a read."""

    seconds: float = 0.0
    from_storage_share: float = 0.0
    """Fraction of the bytes that the kernel fetched from storage for this process; the rest was in
    the page cache, or other processes of the job fetched it."""


class Disk:
    """Times loads of checkpoints in turn with dd, which writes and reads the same number of bytes.

    Args:
        file: path that dd writes, on the file system to measure.
        checkpoint: one of the checkpoints that will be loaded; all have the same size.
    """

    def __init__(self, file: Path, checkpoint: Path) -> None:
        self._file = file
        self.checkpoint_bytes = sum(path.stat().st_size for path in files_in(checkpoint))
        self._writes: list[float] = []
        self._loads: list[Transfer] = []
        self._reads: list[Transfer] = []

    def measure(self, checkpoint: Path, load: Callable[[Path], None]) -> None:
        """Run each once, on all processes of the job; dd runs on rank 0 while the others wait."""
        if dist.get_rank() == 0:
            self._writes.append(dd_write(self._file, self.checkpoint_bytes))
            self._reads.append(dd_read(self._file))
            # Before the load, so that the disk needs room for one file of dd only while dd runs.
            self._file.unlink()
            # The processes of a machine share its page cache, so one of them drops it for all. In a
            # job of several machines only that of rank 0's machine is dropped.
            drop_page_cache(files_in(checkpoint))
        # The load starts on all ranks together, from storage.
        dist.barrier()
        with reading(self.checkpoint_bytes) as transfer:
            # Timed until the slowest rank has its part, as a resumed run waits for all ranks.
            load(checkpoint)
            dist.barrier()
        self._loads.append(transfer)

    def summary(self) -> dict[str, Any]:
        """Return rank 0's figures (dd ran there) as JSON values, on all ranks."""
        shared = [self._summary() if dist.get_rank() == 0 else {}]
        dist.broadcast_object_list(shared)
        return shared[0]

    def _summary(self) -> dict[str, Any]:
        shares = {
            name: statistics.median(transfer.from_storage_share for transfer in transfers)
            for name, transfers in (("load", self._loads), ("dd read", self._reads))
        }
        return {
            "dd_write_seconds": summarize(self._writes),
            "load_seconds": summarize([load.seconds for load in self._loads]),
            "dd_read_seconds": summarize([read.seconds for read in self._reads]),
            "from_storage_share": shares,
        }


def summarize(seconds: Sequence[float]) -> dict[str, float | int]:
    """Return median, minimum, maximum and number of the repeats."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "repeats": len(seconds),
    }


def dd_write(file: Path, num_bytes: int) -> float:
    """Return the seconds that dd takes to write zeros to a new file, including fsync.

    Raises:
        TrainingError: dd failed.
    """
    file.unlink(missing_ok=True)
    count = f"count={_whole_mib(num_bytes)}"
    # Without conv=fsync dd returns when the bytes are in the page cache, not on the storage.
    return _timed(["dd", "if=/dev/zero", f"of={file}", "bs=1M", count, "conv=fsync"])


def dd_read(file: Path) -> Transfer:
    """Return how long dd takes to read a file that is not in the page cache.

    Raises:
        TrainingError: dd failed.
    """
    drop_page_cache([file])
    with reading(file.stat().st_size, of=resource.RUSAGE_CHILDREN) as transfer:
        # A child counts in RUSAGE_CHILDREN once it has been waited for, as subprocess.run does.
        _timed(["dd", f"if={file}", "of=/dev/null", "bs=1M"])
    return transfer


@contextmanager
def reading(num_bytes: int, *, of: int = resource.RUSAGE_SELF) -> Iterator[Transfer]:
    """Time a read inside this context, and the fraction of bytes that came from storage.

    Args:
        num_bytes: bytes that are read.
        of: RUSAGE_SELF if this process reads, RUSAGE_CHILDREN if a child that it waits for does.
    """
    transfer = Transfer()
    before, start = _fetched_bytes(of), time.perf_counter()
    yield transfer
    transfer.seconds = time.perf_counter() - start
    transfer.from_storage_share = (_fetched_bytes(of) - before) / num_bytes


def drop_page_cache(files: Sequence[Path]) -> None:
    """Ask the kernel to drop files from its page cache; pages not yet on storage stay."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            # Offset 0 and length 0 mean the whole file.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def files_in(folder: Path) -> list[Path]:
    """Return all files under a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _fetched_bytes(of: int) -> int:
    return 512 * resource.getrusage(of).ru_inblock  # Linux counts in units of 512 bytes


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TrainingError(
            f"dd must succeed to measure the storage ({' '.join(command)} exited with "
            f"{done.returncode}: {done.stderr.strip()}): choose a --folder with more space"
        )
    return time.perf_counter() - start


def _whole_mib(num_bytes: int) -> int:
    return -(-num_bytes // MIB)  # rounded up
