"""The order of windows: a permutation in every epoch, and a different one in each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.shuffle import shuffled_index


def windows_of_epoch(seed: int, epoch: int, num_windows: int) -> list[int]:
    """The windows of an epoch in the order in which they are visited."""
    return [shuffled_index(seed, epoch, index, num_windows) for index in range(num_windows)]


@pytest.mark.parametrize("num_windows", [*range(1, 130), 255, 256, 257, 1000, 1023, 1024, 1025])
def test_every_epoch_visits_every_window_once(num_windows: int) -> None:
    for epoch in (0, 1, 7):
        assert sorted(windows_of_epoch(1234, epoch, num_windows)) == list(range(num_windows))


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10**6),
    num_windows=st.integers(1, 2**48),
    data=st.data(),
)
def test_positions_of_large_sources_map_to_different_windows(
    seed: int, epoch: int, num_windows: int, data: st.DataObject
) -> None:
    inside = st.integers(0, num_windows - 1)
    indices = data.draw(st.lists(inside, min_size=1, max_size=30, unique=True))
    visited = [shuffled_index(seed, epoch, index, num_windows) for index in indices]
    assert len(set(visited)) == len(indices)
    assert all(0 <= window < num_windows for window in visited)


def test_neighboring_windows_are_scattered() -> None:
    num_windows = 20_011
    visited = np.array(windows_of_epoch(0, 0, num_windows))
    indices = np.arange(num_windows)
    assert abs(np.corrcoef(indices, visited)[0, 1]) < 4 / num_windows**0.5
    steps = np.abs(np.diff(visited)) / num_windows
    assert abs(steps.mean() - 1 / 3) < 0.01
    # On average a random permutation leaves one window where it is, and one pair of neighbors.
    assert (visited == indices).sum() < 8
    assert (np.diff(visited) == 1).sum() < 8


def test_all_permutations_of_few_windows_are_equally_frequent() -> None:
    orders = [tuple(windows_of_epoch(5, epoch, 3)) for epoch in range(3000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 500).max() < 5 * 500**0.5


def test_seed_and_epoch_both_change_the_order() -> None:
    keys = [(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(windows_of_epoch(*key, 50)) for key in keys}) == len(keys)


def test_the_order_is_fixed() -> None:
    """A change here would reorder every run that is in progress."""
    assert windows_of_epoch(1234, 0, 10) == [0, 2, 9, 4, 7, 8, 6, 1, 5, 3]
    assert shuffled_index(1234, 3, 10**9, 10**12) == 850748936827
