"""Policies `groups` and `permuted_groups`: sizes over steps, and the groups."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.order.policies import Groups, PermutedGroups
from armd_scale.order.policies.groups import group_blocks, permuted_group_blocks
from tests.order.policies.rounds import random_bit_arrays, rounds


def test_sizes_take_equal_spans_of_the_ramp() -> None:
    policy = Groups(sizes=(1, 2, 3, 4), ramp_end=100)
    policies = [policy.at_step(step) for step in range(120)]
    for index, size in enumerate((1, 2, 3)):
        assert set(policies[25 * index : 25 * index + 25]) == {Groups(sizes=(size,))}
    assert set(policies[75:]) == {Groups(sizes=(4,))}


def test_more_sizes_than_ramp_steps_end_at_the_last_size() -> None:
    policy = PermutedGroups(sizes=(1, 2, 4, 8), ramp_end=2)
    assert [str(policy.at_step(step)) for step in (0, 1, 2)] == [
        "permuted_groups:1",
        "permuted_groups:4",
        "permuted_groups:8",
    ]


@given(random_bits=random_bit_arrays, size=st.integers(1, 70))
def test_groups_have_their_size(random_bits: np.ndarray, size: int) -> None:
    num_targets = len(random_bits)
    for block in (group_blocks(num_targets, size), permuted_group_blocks(random_bits, size)):
        counts = np.bincount(block)[1:]
        assert (counts[:-1] == size).all()
        assert counts[-1] == (num_targets - 1) % size + 1
    assert (np.diff(group_blocks(num_targets, size)) >= 0).all()


def test_permuted_groups_follow_the_ranks_of_the_random_integers() -> None:
    random_bits = np.array([50, 10, 40, 20, 30], dtype=np.uint64)
    assert rounds(permuted_group_blocks(random_bits, 2)) == [[2, 4], [3, 5], [1]]
    assert rounds(permuted_group_blocks(random_bits, 1)) == [[2], [4], [5], [3], [1]]
