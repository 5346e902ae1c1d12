"""Per-rank phase tracking, used to tell the rank that hangs from the ranks that wait for it.

The training loop names each phase as it starts it: waiting for data, forward and backward, and so
on. `peer_monitor` sends the current phase to rank 0, which finds the rank that is stuck and ends
the job with status 75; a batch script then requeues it. Every rank that still responds writes the
stack traces of its threads first.
"""

import faulthandler
import sys
import time
from contextlib import suppress
from pathlib import Path

from armd_scale.fault.heartbeat import Heartbeat


class Watchdog:
    """The current phase of this rank and the time it was entered.

    Args:
        folder: the run folder; stack traces go to its subfolder `stacks/`.
        rank: global rank of this process, for the file name.
        hang_timeout_seconds: longest time that a rank may stay in one phase; 0 disables the check.
    """

    def __init__(
        self, folder: Path = Path(), *, rank: int = 0, hang_timeout_seconds: float = 0
    ) -> None:
        self.hang_timeout_seconds = hang_timeout_seconds
        self._stacks_file = folder / "stacks" / f"rank_{rank}.txt"
        # One tuple, replaced as a whole: the heartbeat thread reads it without a lock, and must
        # never combine the name of one phase with the start time of another.
        self._current = (0, "starting", time.monotonic())

    def set_phase(self, phase: str, step: int | None = None) -> None:
        """Enter a phase, such as "saving", optionally of an optimizer step."""
        label = phase if step is None else f"{phase}, step {step}"
        self._current = (self._current[0] + 1, label, time.monotonic())

    def heartbeat(self) -> Heartbeat:
        """Return the current phase and its age; safe to call from any thread."""
        index, phase, start = self._current
        return Heartbeat(phase_index=index, phase=phase, seconds_in_phase=time.monotonic() - start)

    def dump_stacks(self) -> None:
        """Write the stacks of all threads to the run folder, or to stderr if that fails.

        `faulthandler` needs no GIL-bound formatting, so this works while the main thread is stuck.
        """
        with suppress(OSError):
            self._stacks_file.parent.mkdir(exist_ok=True)
            with self._stacks_file.open("w") as file:
                faulthandler.dump_traceback(file)
            return
        faulthandler.dump_traceback(sys.stderr)
