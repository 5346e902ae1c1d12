"""Blending: compute in closed form which source sample k of a run comes from.

Think of source d as producing its i-th sample at time (i + 1/2) / w_d. All these events are sorted
by (time, source), and the k-th event is sample k. So the shares are right at every moment: up to
any time each source has produced its share to within half a sample. And the sequence is fixed
before anyone reads it: sample k depends on nothing but the weights and k. A longer run, a resumed
run or another number of processes changes nothing, and no counters have to be stored.

All arithmetic uses integers, so that ties and rounding are the same on every machine.
"""

import heapq
import math
from fractions import Fraction
from functools import lru_cache


def blend(weights: tuple[float, ...], index: int) -> tuple[int, int]:
    """Return the source of sample `index` and the index of the sample within that source.

    Args:
        weights: shares of the sources, above 0, in any unit. They mean what is written: 0.1 is
            exactly one tenth.
        index: index of the sample in the run.
    """
    half_periods, samples_per_cycle, cycle = _integer_periods(weights)
    # Merging all events from 0 on would take `index` steps. Instead start shortly before sample
    # `index`. At `time` the fair total is `index` minus half the number of sources, and each source
    # is within half a sample of its share: together they have produced at most `index` samples, and
    # about as many fewer at most as there are sources. That is how many merges are left.
    time = max(0, (2 * index - len(weights)) * cycle // (2 * samples_per_cycle))
    # Events of a source lie at odd multiples of its half period; this counts those before `time`.
    counts = [(time + half - 1) // (2 * half) for half in half_periods]
    # The heap holds the next event of each source, as (time, source): equal times are resolved by
    # the index of the source.
    events = [
        ((2 * count + 1) * half, source)
        for source, (count, half) in enumerate(zip(counts, half_periods, strict=True))
    ]
    heapq.heapify(events)
    for _ in range(index - sum(counts)):
        event_time, source = events[0]
        counts[source] += 1
        heapq.heapreplace(events, (event_time + 2 * half_periods[source], source))
    source = events[0][1]
    return source, counts[source]


@lru_cache
def _integer_periods(weights: tuple[float, ...]) -> tuple[tuple[int, ...], int, int]:
    """Choose a unit of time in which all events are at integer times.

    Returns:
        Half the period of each source, the number of samples in a cycle of all sources, and the
        length of that cycle.
    """
    # str gives the shortest decimal number that is this float, which is what the user wrote.
    exact = [Fraction(str(weight)) for weight in weights]
    assert min(exact) > 0, weights
    scale = math.lcm(*(weight.denominator for weight in exact))
    integer_weights = [int(weight * scale) for weight in exact]
    common = math.lcm(*integer_weights)
    half_periods = tuple(common // weight for weight in integer_weights)
    return half_periods, sum(integer_weights), 2 * common
