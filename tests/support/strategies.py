"""Hypothesis strategies for tests of orders: windows, policies, blocks."""

import numpy as np
from hypothesis import strategies as st

from armd_scale.order.policies import (
    Diffusion,
    Groups,
    LeftToRight,
    Mixture,
    MixtureComponent,
    OrderPolicy,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
)

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
simple_orders: st.SearchStrategy[OrderPolicy] = st.one_of(
    st.builds(LeftToRight),
    st.integers(1, 40).map(Progressive.constant),
    st.builds(Strided, streams=sizes, joint=st.booleans()),
    st.builds(RandomPermutation),
    st.builds(Groups, sizes=sizes),
    st.builds(PermutedGroups, sizes=sizes),
    st.builds(Diffusion, num_timesteps=st.integers(1, 50)),
)
weights = st.floats(1e-3, 1e20)


def _mixtures(orders: st.SearchStrategy[OrderPolicy]) -> st.SearchStrategy[OrderPolicy]:
    component = st.builds(MixtureComponent, weight=weights, order=orders)
    components = st.lists(component, min_size=1, max_size=3).map(tuple)
    return st.builds(Mixture, components=components)


orders = st.recursive(simple_orders, _mixtures, max_leaves=4)
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple)
long_lengths = lengths.filter(lambda pieces: sum(pieces) > 1)
seeds = st.integers(0, 2**64 - 1)


@st.composite
def given_windows(draw: st.DrawFn, lengths: tuple[int, ...]) -> np.ndarray:
    """Blocks as callers may pass them: gaps in the ids, given tokens anywhere."""
    total = sum(lengths)
    block = draw(st.lists(st.integers(0, 12), min_size=total, max_size=total))
    block = np.array(block, dtype=np.int32)
    block[np.cumsum((0, *lengths[:-1]))] = 0
    return block
