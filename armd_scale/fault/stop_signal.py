"""Requests to stop: SIGTERM, SIGUSR1/2 and Ctrl-C let the step finish and the state be saved."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

# Schedulers announce a time limit or a preemption by SIGUSR1, submitit by SIGUSR2.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers a stopping signal; a second Ctrl-C ends the process at once.

    As a context manager it takes the signals over and gives them back.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def any_rank(self, device: torch.device) -> int | None:
        """The signal that any process got, the same answer on all of them (collective)."""
        largest = torch.tensor(self._signal or 0, device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest) or None
