"""Policy `progressive`: its ramp over steps, and the tokens it moves."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.order.policies import LeftToRight, Progressive
from armd_scale.order.policies.left_to_right import left_to_right_blocks
from armd_scale.order.policies.progressive import progressive_blocks
from tests.order.policies.rounds import random_bit_arrays

PROGRESSIVE = Progressive(ar_steps=100, ramp_end=400, rho=32)


def test_starts_in_text_order() -> None:
    assert {PROGRESSIVE.at_step(step) for step in range(100)} == {LeftToRight()}


def test_grows_linearly_and_then_stays() -> None:
    policies = [PROGRESSIVE.at_step(step) for step in range(100, 401)]
    num_shuffled = [policy.rho for policy in policies if isinstance(policy, Progressive)]
    assert len(num_shuffled) == len(policies)
    assert num_shuffled[0] == 1
    assert num_shuffled[-1] == 32
    assert num_shuffled[-2] == 31
    for elapsed, amount in enumerate(num_shuffled):
        assert 0 <= 1 + 31 * elapsed / 300 - amount < 1
    assert PROGRESSIVE.at_step(10**6) == Progressive.constant(32)


def test_without_a_ramp_it_jumps() -> None:
    policy = Progressive(ar_steps=10, ramp_end=10, rho=8)
    assert [policy.at_step(step) for step in (9, 10)] == [LeftToRight(), Progressive.constant(8)]


def test_a_constant_policy_is_the_same_at_every_step() -> None:
    constant = Progressive.constant(8)
    assert {constant.at_step(step) for step in (0, 1, 10**6)} == {constant}


@given(random_bits=random_bit_arrays, num_shuffled=st.integers(1, 70))
def test_moves_at_most_the_shuffled_tokens(random_bits: np.ndarray, num_shuffled: int) -> None:
    block = progressive_blocks(random_bits, num_shuffled)
    moved = block != left_to_right_blocks(len(random_bits))
    assert moved.sum() <= num_shuffled
    assert sorted(block) == list(range(1, len(random_bits) + 1))
    if num_shuffled == 1:
        assert not moved.any()


@given(random_bits=random_bit_arrays)
def test_over_all_tokens_it_is_a_plain_permutation(random_bits: np.ndarray) -> None:
    block = progressive_blocks(random_bits, len(random_bits))
    np.testing.assert_array_equal(block - 1, np.argsort(random_bits, kind="stable"))
