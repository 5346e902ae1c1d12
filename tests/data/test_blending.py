"""Blending: exact shares at every moment, and each source in its own order."""

import math
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.blending import blend

shares = st.lists(st.floats(0.001, 1000), min_size=1, max_size=6).map(tuple)


def merge_events(weights: tuple[float, ...], count: int) -> list[tuple[int, int]]:
    """Merge by definition: all events up to some time, sorted by (time, source)."""
    exact = [Fraction(str(weight)) for weight in weights]
    horizon = (count + len(weights)) / sum(exact)
    events = [
        ((i + Fraction(1, 2)) / weight, source, i)
        for source, weight in enumerate(exact)
        for i in range(math.ceil(horizon * weight) + 1)
    ]
    return [(source, i) for _, source, i in sorted(events)[:count]]


@given(weights=shares, count=st.integers(1, 60))
def test_blend_equals_the_merge_of_all_events(weights: tuple[float, ...], count: int) -> None:
    assert [blend(weights, k) for k in range(count)] == merge_events(weights, count)


@given(weights=shares, start=st.integers(0, 10**15))
def test_sources_advance_by_one_and_keep_their_share(
    weights: tuple[float, ...], start: int
) -> None:
    counts: dict[int, int] = {}
    for k in range(start, start + 40):
        source, index = blend(weights, k)
        assert index == counts.get(source, index)
        counts[source] = index + 1
        fair = Fraction(str(weights[source])) / sum(Fraction(str(w)) for w in weights) * k
        assert abs(index - fair) <= len(weights)


def test_equal_weights_take_turns() -> None:
    assert [blend((0.5, 0.5), k) for k in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_weights_mean_what_is_written() -> None:
    """0.1, 0.2 and 0.3 have no exact binary form, but count as exact tenths."""
    tenths = [blend((0.1, 0.2, 0.3), k) for k in range(600)]
    assert tenths == [blend((1.0, 2.0, 3.0), k) for k in range(600)]
    assert [sum(source == d for source, _ in tenths) for d in range(3)] == [100, 200, 300]


def test_one_source_is_the_identity() -> None:
    assert [blend((0.3,), k) for k in (0, 1, 10**12)] == [(0, 0), (0, 1), (0, 10**12)]


@pytest.mark.parametrize("index", [10, 10**15])
def test_blending_many_sources_is_fast(index: int) -> None:
    weights = tuple(1 / (d + 1) for d in range(50))
    blend(weights, 0)
    start = time.perf_counter()
    for k in range(index, index + 20):
        blend(weights, k)
    assert (time.perf_counter() - start) / 20 < 0.01
