"""Bandwidth of a file system: reads of checkpoints beside `dd`, out of the page cache."""

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
    """A read of some bytes, timed."""

    seconds: float = 0.0
    from_storage_share: float = 0.0
    """Of the bytes, those that the kernel fetched from storage for this process; the others were in
    memory, or other processes of the job fetched them."""


class Disk:
    """Loads checkpoints, and has dd write and read as many bytes beside them.

    Args:
        file: for dd, on the file system to measure.
        checkpoint: one of those that will be loaded; all are of a size.
    """

    def __init__(self, file: Path, checkpoint: Path) -> None:
        self._file = file
        self.checkpoint_bytes = sum(one.stat().st_size for one in files_in(checkpoint))
        self._writes: list[float] = []
        self._loads: list[Transfer] = []
        self._reads: list[Transfer] = []

    def measure(self, checkpoint: Path, load: Callable[[Path], None]) -> None:
        """One turn of each on all processes of the job; dd runs on the first, and others wait."""
        if dist.get_rank() == 0:
            self._writes.append(dd_write(self._file, self.checkpoint_bytes))
            self._reads.append(dd_read(self._file))
            self._file.unlink()
            drop_page_cache(files_in(checkpoint))
        dist.barrier()
        with reading(self.checkpoint_bytes) as transfer:
            load(checkpoint)
            dist.barrier()
        self._loads.append(transfer)

    def summary(self) -> dict[str, Any]:
        """JSON values as the first process, where dd ran, has measured them."""
        shared = [self._summary() if dist.get_rank() == 0 else {}]
        dist.broadcast_object_list(shared)
        return shared[0]

    def _summary(self) -> dict[str, Any]:
        shares = {
            name: statistics.median(one.from_storage_share for one in transfers)
            for name, transfers in (("load", self._loads), ("dd read", self._reads))
        }
        return {
            "dd_write_seconds": summarize(self._writes),
            "load_seconds": summarize([load.seconds for load in self._loads]),
            "dd_read_seconds": summarize([read.seconds for read in self._reads]),
            "from_storage_share": shares,
        }


def summarize(seconds: Sequence[float]) -> dict[str, float | int]:
    """Median, extremes and number of some runs."""
    return {
        "median": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "runs": len(seconds),
    }


def dd_write(file: Path, num_bytes: int) -> float:
    """Seconds in which dd writes zeros to a new file and the storage has them.

    Raises:
        TrainingError: dd failed.
    """
    file.unlink(missing_ok=True)
    count = f"count={_whole_mib(num_bytes)}"
    return _timed(["dd", "if=/dev/zero", f"of={file}", "bs=1M", count, "conv=fsync"])


def dd_read(file: Path) -> Transfer:
    """How long dd takes to read a file that was put out of the page cache before.

    Raises:
        TrainingError: dd failed.
    """
    drop_page_cache([file])
    with reading(file.stat().st_size, of=resource.RUSAGE_CHILDREN) as transfer:
        _timed(["dd", f"if={file}", "of=/dev/null", "bs=1M"])
    return transfer


@contextmanager
def reading(num_bytes: int, *, of: int = resource.RUSAGE_SELF) -> Iterator[Transfer]:
    """Times what reads so many bytes, and counts those that came from storage.

    Args:
        num_bytes: that are read.
        of: RUSAGE_SELF where this process reads, RUSAGE_CHILDREN where one that it waits for does.
    """
    transfer = Transfer()
    fetched, began = _fetched_bytes(of), time.perf_counter()
    yield transfer
    transfer.seconds = time.perf_counter() - began
    transfer.from_storage_share = (_fetched_bytes(of) - fetched) / num_bytes


def drop_page_cache(files: Sequence[Path]) -> None:
    """Asks the kernel to drop files from its page cache: it does so for what is on storage."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def files_in(folder: Path) -> list[Path]:
    """All files under a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _fetched_bytes(of: int) -> int:
    return 512 * resource.getrusage(of).ru_inblock  # Linux counts in units of 512 bytes


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TrainingError(
            f"dd must be able to measure the storage, and {' '.join(command)} ended with "
            f"{done.returncode} ({done.stderr.strip()}): name a --folder with more space"
        )
    return time.perf_counter() - began


def _whole_mib(num_bytes: int) -> int:
    return -(-num_bytes // MIB)
