"""Graceful stop: SIGTERM, SIGUSR1/2 and Ctrl-C let the step finish and the state be saved."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

# Schedulers announce a time limit or a preemption by SIGUSR1, submitit by SIGUSR2.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Context manager that records stop signals; a second Ctrl-C interrupts immediately.

    The previous signal handlers are restored on exit.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._previous_handlers = {
            signum: signal.signal(signum, self._record) for signum in STOP_SIGNALS
        }
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signum

    def any_rank(self, device: torch.device) -> int | None:
        """Return a stop signal that any rank received, or None (collective over all ranks).

        Every rank gets the same answer, so that all leave the training loop after the same step:
        a scheduler may signal one rank only, or signal the ranks in different steps.
        """
        largest = torch.tensor(self._signal or 0, device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest) or None
