"""Assigning documents to train, valid and test."""

import numpy as np

from armd_scale.data.preprocess.splits import assign_split, split_bounds


def test_splits_get_their_fractions():
    bounds = split_bounds(("0.7", "0.2", "0.1"))
    sides = [assign_split(str(i).encode(), bounds) for i in range(20_000)]
    shares = np.bincount(sides) / len(sides)
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.01)
