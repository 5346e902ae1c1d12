"""The order in which a run visits its windows: a permutation that is computed, not stored.

Position `index` of an epoch is encrypted by a cipher that maps the window indices onto themselves.
There is no shuffled index to build, to cache or to keep equal in all processes. The order of an
epoch depends only on (seed, epoch), so a longer run visits the same windows first.
"""

from functools import lru_cache
from math import isqrt

from armd_scale.order.rng import UINT64_MASK, splitmix64

ROUNDS = 8


def shuffled_index(seed: int, epoch: int, index: int, num_windows: int) -> int:
    """Return the window at position `index` of an epoch; an epoch visits each window exactly once.

    This is a Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    Its halves are the row and the column in a grid just large enough for all W windows. A round
    adds a hash of the column to the row, then a hash of the row to the column. Each round can be
    undone, so the whole is a permutation of the grid. A result outside the windows is encrypted
    again until it is inside (cycle walking), which keeps it a permutation. About one cell in
    sqrt(W) is outside.

    Args:
        seed: seed of the run.
        epoch: index of the epoch.
        index: position in the epoch, 0 <= index < num_windows.
        num_windows: W, the number of windows.
    """
    keys = _round_keys(seed, epoch)
    cell = _permute(index, keys, num_windows)
    while cell >= num_windows:
        cell = _permute(cell, keys, num_windows)
    return cell


def _permute(cell: int, keys: tuple[int, ...], num_windows: int) -> int:
    """Encrypt a cell of the grid of rows x columns >= `num_windows` cells."""
    rows: int = isqrt(num_windows - 1) + 1  # square root, rounded up
    columns = -(-num_windows // rows)
    row, column = cell // columns, cell % columns
    for row_key, column_key in zip(keys[::2], keys[1::2], strict=True):
        row_hash: int = splitmix64(column, row_key)
        row = (row + row_hash % rows) % rows
        column_hash: int = splitmix64(row, column_key)
        column = (column + column_hash % columns) % columns
    return row * columns + column


@lru_cache
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    base = splitmix64(epoch, splitmix64(seed & UINT64_MASK, 0))
    return tuple(splitmix64(turn, base) for turn in range(ROUNDS))
