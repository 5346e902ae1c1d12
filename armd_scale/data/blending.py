"""Blending: which source sample k of a run comes from, in closed form.

Picture source d ticking w_d times a second, its i-th sample at time (i + 1/2) / w_d. Merge all
ticks by (time, source), and the k-th one is sample k. Shares are right at every moment: up to any
time, each source has given its share to within half a sample. And since the merged sequence is
there before anyone reads it, sample k depends on nothing but the weights and k: a longer run, a
resume or another number of processes changes nothing, and no counters are kept.

All arithmetic is in whole numbers, so that ties and rounding are the same on every machine.
"""

import heapq
import math
from fractions import Fraction
from functools import lru_cache


def blend(weights: tuple[float, ...], index: int) -> tuple[int, int]:
    """The source of sample `index`, and the sample's number within that source.

    Args:
        weights: shares of the sources, above 0, in any unit; meant as written: 0.1 is one tenth.
        index: number of the sample in the run.
    """
    half_periods, samples, cycle = _integer_periods(weights)
    # Up to `time` each source has given its share to within half a sample: all of them together
    # no more than `index`, and hardly fewer than that less the number of sources. So few merges
    # are left.
    time = max(0, (2 * index - len(weights)) * cycle // (2 * samples))
    given = [(time + half - 1) // (2 * half) for half in half_periods]
    events = [
        ((2 * count + 1) * half, source)
        for source, (count, half) in enumerate(zip(given, half_periods, strict=True))
    ]
    heapq.heapify(events)
    for _ in range(index - sum(given)):
        tick, source = events[0]
        given[source] += 1
        heapq.heapreplace(events, (tick + 2 * half_periods[source], source))
    source = events[0][1]
    return source, given[source]


@lru_cache
def _integer_periods(weights: tuple[float, ...]) -> tuple[tuple[int, ...], int, int]:
    """Whole numbers such that source d ticks at odd multiples of the d-th half period.

    Returns:
        The half periods, and a number of samples with the time in which all sources together give
        that many.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    assert min(exact) > 0, weights
    scale = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * scale) for share in exact]
    common = math.lcm(*whole)
    return tuple(common // share for share in whole), sum(whole), 2 * common
