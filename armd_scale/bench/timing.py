"""Times of several ways to do one thing, taken in turn, so that they meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from armd_scale.bench.table import Row


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall time of several runs of one thing, in seconds."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The run in the middle."""
        return statistics.median(self.runs)

    def row(self, name: str) -> Row:
        """The start of a table's row: name, median and extremes."""
        return {
            "way": name,
            "median ms": 1000 * self.median,
            "least ms": 1000 * min(self.runs),
            "most ms": 1000 * max(self.runs),
        }


def time_interleaved(cases: Mapping[str, Callable[[], object]], *, runs: int) -> dict[str, Timings]:
    """Calls every way once without the clock, then each in turn, `runs` times over."""
    for call in cases.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(runs):
        for name, call in cases.items():
            wait()
            began = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - began)
    return {name: Timings(runs=tuple(taken)) for name, taken in seconds.items()}


def wait() -> None:
    """Waits until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(times: Mapping[str, Timings], name: str, to: str) -> float:
    """How many times as long `name` takes as `to`: the median over turns of the two in one turn."""
    pairs = zip(times[name].runs, times[to].runs, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)
