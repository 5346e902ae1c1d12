"""The order in which a run visits its windows: a permutation that is computed, not stored.

Place `index` of an epoch goes through a keyed cipher whose domain is the windows themselves. There
is no shuffled index to build, to cache or to keep alike between processes; and since an epoch's
order depends on (seed, epoch) alone, making a run longer reorders nothing.
"""

from functools import lru_cache
from math import isqrt
from typing import TypeVar

import numpy as np
from jaxtyping import Int, Int64

from armd_scale.order.rng import UINT64_MASK, splitmix64

ROUNDS = 8
Number = TypeVar("Number", int, np.ndarray)


def shuffled_index(seed: int, epoch: int, index: int, num_windows: int) -> int:
    """The window at place `index` of an epoch; over an epoch each window comes exactly once.

    A Feistel network whose halves are a row and a column of a grid just large enough for all
    windows (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): rounds add to the
    row a hash of the column, then to the column a hash of the row. Each round can be undone, so the
    whole is a permutation of the grid. A result outside the windows is fed in again until one falls
    inside (cycle walking), which keeps it a permutation. About one place in sqrt(W) is outside.
    """
    keys = _round_keys(seed, epoch)
    place = _permute(index, keys, num_windows)
    while place >= num_windows:
        place = _permute(place, keys, num_windows)
    return place


def windows_of(
    seed: int, epoch: int, indices: Int[np.ndarray, " n"], num_windows: int
) -> Int64[np.ndarray, " n"]:
    """`window_of` for many places of an epoch at once."""
    keys = _round_keys(seed, epoch)
    places = _permute(indices.astype(np.uint64), keys, num_windows)
    while (outside := places >= num_windows).any():
        places[outside] = _permute(places[outside], keys, num_windows)
    return places.astype(np.int64)


def _permute(place: Number, keys: tuple[int, ...], num_windows: int) -> Number:
    """The cipher on the grid of rows x columns places that hold `num_windows`."""
    rows = isqrt(num_windows - 1) + 1
    columns = -(-num_windows // rows)
    row, column = place // columns, place % columns
    for row_key, column_key in zip(keys[::2], keys[1::2], strict=True):
        row = (row + splitmix64(column, row_key) % rows) % rows
        column = (column + splitmix64(row, column_key) % columns) % columns
    return row * columns + column  # pyright: ignore[reportReturnType] - int or array, as given


@lru_cache
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    base = splitmix64(epoch, splitmix64(seed & UINT64_MASK, 0))
    return tuple(splitmix64(turn, base) for turn in range(ROUNDS))
