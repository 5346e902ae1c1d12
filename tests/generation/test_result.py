"""Results of generation: figures."""

import numpy as np
import pytest

from armd_scale.generation import RoundResult, entropy_bits


def test_entropy_is_in_bits():
    assert entropy_bits(np.array([1, 1, 1])) == 0
    assert entropy_bits(np.array([1, 2, 3, 4])) == 2
    assert entropy_bits(np.array([5, 5, 6, 7])) == 1.5
    assert entropy_bits(np.array([], dtype=np.int64)) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_max_committed_is_the_largest_count_of_a_text(count):
    positions = np.zeros((3, 4), dtype=int)
    positions[1, 4 - count :] = 5
    assert RoundResult(1, positions, positions).max_committed == count
