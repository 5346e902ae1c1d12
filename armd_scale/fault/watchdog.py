"""What this process is doing, so that one that hangs can be told from those that wait for it.

The loop says what it begins: waiting for data, forward and backward, and so on. `liveness` tells
the other processes, finds the one that is stuck, and ends the job with status 75, upon which a
batch script starts it again. Every process that still can then writes where its threads are.
"""

import faulthandler
import sys
import time
from contextlib import suppress
from pathlib import Path

from armd_scale.fault.heartbeat import Heartbeat


class Watchdog:
    """Remembers what this process does and since when.

    Args:
        folder: the run's; stacks go to `stacks/` in it.
        rank: of this process.
        hang_timeout_seconds: how long it may do the same thing; 0: as long as it likes.
    """

    def __init__(
        self, folder: Path = Path(), *, rank: int = 0, hang_timeout_seconds: float = 0
    ) -> None:
        self.hang_timeout_seconds = hang_timeout_seconds
        self._file = folder / "stacks" / f"rank_{rank}.txt"
        self._now = (0, "starting", time.monotonic())

    def set_phase(self, phase: str, step: int | None = None) -> None:
        """Says what begins now, as in "has been ... for 100 s"."""
        what = phase if step is None else f"{phase} in step {step}"
        self._now = (self._now[0] + 1, what, time.monotonic())

    def heartbeat(self) -> Heartbeat:
        """What it is doing."""
        turn, doing, since = self._now
        return Heartbeat(phase_index=turn, phase=doing, seconds=time.monotonic() - since)

    def dump_stacks(self) -> None:
        """Writes the stacks of all threads to the run's folder, or to stderr where it cannot."""
        with suppress(OSError):
            self._file.parent.mkdir(exist_ok=True)
            with self._file.open("w") as file:
                faulthandler.dump_traceback(file)
            return
        faulthandler.dump_traceback(sys.stderr)
