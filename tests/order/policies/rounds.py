"""Blocks as sets of positions, for tests of block constructions."""

import numpy as np
from hypothesis import strategies as st

random_bit_arrays = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60).map(
    lambda numbers: np.array(numbers, dtype=np.uint64)
)


def rounds(block: np.ndarray) -> list[list[int]]:
    """Positions (from 1) of each block, in block order."""
    return [(np.flatnonzero(block == b) + 1).tolist() for b in range(1, block.max() + 1)]
