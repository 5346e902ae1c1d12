"""What Hypothesis draws for tests of orders: windows, policies, blocks."""

import numpy as np
from hypothesis import strategies as st

from armd_scale.order.policies import (
    Diffusion,
    Groups,
    LeftToRight,
    Mixture,
    Order,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
)

amounts = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
simple_orders: st.SearchStrategy[Order] = st.one_of(
    st.builds(LeftToRight),
    st.builds(Progressive, st.integers(1, 40)),
    st.builds(Strided, amounts, st.booleans()),
    st.builds(RandomPermutation),
    st.builds(Groups, amounts),
    st.builds(PermutedGroups, amounts),
    st.builds(Diffusion, st.integers(1, 50)),
)
weights = st.floats(1e-3, 1e20)


def _mixtures(parts: st.SearchStrategy[Order]) -> st.SearchStrategy[Order]:
    pairs = st.lists(st.tuples(weights, parts), min_size=1, max_size=3)
    return pairs.map(lambda drawn: Mixture(*(tuple(side) for side in zip(*drawn, strict=True))))


orders = st.recursive(simple_orders, _mixtures, max_leaves=4)
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple)
long_lengths = lengths.filter(lambda pieces: sum(pieces) > 1)
seeds = st.integers(0, 2**64 - 1)


@st.composite
def given_windows(draw: st.DrawFn, lengths: tuple[int, ...]) -> np.ndarray:
    """Blocks as they come from outside: gaps in the ids, given tokens anywhere."""
    total = sum(lengths)
    block = draw(st.lists(st.integers(0, 12), min_size=total, max_size=total))
    block = np.array(block, dtype=np.int32)
    block[np.cumsum((0, *lengths[:-1]))] = 0
    return block
