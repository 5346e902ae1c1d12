"""Graceful stop: a stop signal lets the step finish and the state be saved."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

# Schedulers announce a time limit or a preemption by SIGUSR1, submitit by SIGUSR2.
# SIGHUP comes when a terminal or an ssh connection is closed.
STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_num_deferrals = 0


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Keep a second Ctrl-C from interrupting the block, such as a save that would be lost."""
    global _num_deferrals
    _num_deferrals += 1
    try:
        yield
    finally:
        _num_deferrals -= 1


class StopRequest:
    """Context manager that records stop signals; a second Ctrl-C interrupts immediately.

    Not while a save is in progress (`defer_interrupts`): there it is only answered with a line. The
    previous signal handlers are restored on exit.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._previous_handlers = {
            signum: signal.signal(signum, self._record)
            for signum in STOP_SIGNALS
            # A command under nohup is to go on when its terminal is closed.
            if not (signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None and signum == signal.SIGINT:
            if _num_deferrals == 0:
                raise KeyboardInterrupt
            # A system call and no log line: the signal may have arrived in the middle of another.
            os.write(2, b"a checkpoint is being saved; the process ends when it is complete\n")
        self._signal = signum

    @property
    def signal_number(self) -> int | None:
        """The number of the last signal that this process received, or None."""
        return self._signal

    def any_rank(self, device: torch.device) -> int | None:
        """Return a stop signal that any rank received, or None (collective over all ranks).

        Every rank gets the same answer, so that all leave the training loop after the same step:
        a scheduler may signal one rank only, or signal the ranks in different steps.
        """
        largest = torch.tensor(self._signal or 0, device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest) or None
