"""The order of windows: a permutation in every epoch, another one in each, alike in both forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.shuffle import shuffled_index, windows_of


@pytest.mark.parametrize("num_windows", [*range(1, 130), 255, 256, 257, 1000, 1023, 1024, 1025])
def test_every_epoch_visits_every_window_once(num_windows: int) -> None:
    places = np.arange(num_windows)
    for epoch in (0, 1, 7):
        visited = windows_of(1234, epoch, places, num_windows)
        assert sorted(visited.tolist()) == places.tolist()


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10**6),
    num_windows=st.integers(1, 2**48),
    data=st.data(),
)
def test_large_sources(seed: int, epoch: int, num_windows: int, data: st.DataObject) -> None:
    inside = st.integers(0, num_windows - 1)
    places = data.draw(st.lists(inside, min_size=1, max_size=30, unique=True))
    visited = [shuffled_index(seed, epoch, place, num_windows) for place in places]
    assert len(set(visited)) == len(places)
    assert all(0 <= window < num_windows for window in visited)
    assert windows_of(seed, epoch, np.array(places), num_windows).tolist() == visited


def test_neighbouring_windows_are_scattered() -> None:
    num_windows = 100_003
    visited = windows_of(0, 0, np.arange(num_windows), num_windows)
    place = np.arange(num_windows)
    assert abs(np.corrcoef(place, visited)[0, 1]) < 4 / num_windows**0.5
    steps = np.abs(np.diff(visited)) / num_windows
    assert abs(steps.mean() - 1 / 3) < 0.01
    # A random permutation keeps one window at its place on average, and few pairs of neighbours.
    assert (visited == place).sum() < 8
    assert (np.diff(visited) == 1).sum() < 8


def test_all_permutations_of_few_windows_occur_alike() -> None:
    orders = [tuple(windows_of(5, epoch, np.arange(3), 3).tolist()) for epoch in range(3000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 500).max() < 5 * 500**0.5


def test_seed_and_epoch_both_change_the_order() -> None:
    keys = [(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({windows_of(*key, np.arange(50), 50).tobytes() for key in keys}) == len(keys)


def test_the_order_is_what_it_has_always_been() -> None:
    """A change here reorders every run in flight."""
    assert windows_of(1234, 0, np.arange(10), 10).tolist() == [0, 2, 9, 4, 7, 8, 6, 1, 5, 3]
    assert shuffled_index(1234, 3, 10**9, 10**12) == 850748936827
