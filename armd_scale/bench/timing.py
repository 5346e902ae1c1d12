"""Time several cases in turn, so that all of them meet the same load of the machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from armd_scale.bench.table import Row


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall-clock seconds of each repeat of one case."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def row(self, name: str) -> Row:
        """Return the first columns of a table row: name, median, minimum and maximum."""
        return {
            "case": name,
            "median ms": 1000 * self.median,
            "min ms": 1000 * min(self.seconds),
            "max ms": 1000 * max(self.seconds),
        }


def time_interleaved(
    cases: Mapping[str, Callable[[], object]], *, repeats: int
) -> dict[str, Timings]:
    """Call every case once to warm up, then time all cases in turn, `repeats` times."""
    for call in cases.values():
        call()
    # In turn, not one case after another: a machine that slows down (heat, another job) then slows
    # all cases alike, and ratios within a turn stay meaningful.
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            # Before the start, so that no work of the case before counts here; and after the call,
            # because CUDA calls return when their kernels are queued, not when they are done.
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timings(seconds=tuple(values)) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(timings: Mapping[str, Timings], case: str, baseline: str) -> float:
    """Return the time of `case` over that of `baseline`: the median of ratios within a turn."""
    # Not the ratio of the medians: they may come from different turns, with different load.
    turns = zip(timings[case].seconds, timings[baseline].seconds, strict=True)
    return statistics.median(seconds / baseline_seconds for seconds, baseline_seconds in turns)
