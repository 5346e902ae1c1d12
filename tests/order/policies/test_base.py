"""The parts that policies share, and the registry."""

from collections.abc import Callable
from dataclasses import is_dataclass

import pytest

from armd_scale.order.policies import (
    POLICIES,
    Diffusion,
    Groups,
    LeftToRight,
    OrderPolicy,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
)
from armd_scale.order.policies.base import choose_one, size_violations
from armd_scale.order.rng import KeyedRng


@pytest.mark.parametrize(
    ("policy", "spec"),
    [
        (LeftToRight(), "l2r"),
        (Progressive.constant(8), "progressive:8"),
        (Strided(), "strided:1,2,4"),
        (Strided(streams=(2,), joint=False), "strided-ar:2"),
        (RandomPermutation(), "random"),
        (Groups(sizes=(1, 2)), "groups:1,2"),
        (PermutedGroups(sizes=(4, 8)), "permuted_groups:4,8"),
        (Diffusion(num_timesteps=64), "diffusion:64"),
    ],
)
def test_policies_without_a_ramp_are_the_same_at_every_step(policy: OrderPolicy, spec: str) -> None:
    assert {str(policy.at_step(step)) for step in (0, 1, 10**6)} == {spec}


def test_registered_policies_have_different_names_and_are_dataclasses() -> None:
    names = [policy.policy for policy in POLICIES]
    assert len(set(names)) == len(names)
    assert all(is_dataclass(policy) for policy in POLICIES)


@pytest.mark.parametrize(
    ("policy", "always", "sometimes"),
    [
        (LeftToRight(), True, True),
        (Progressive(ar_steps=5, ramp_end=9, rho=4), False, True),
        (Progressive.constant(1), True, True),
        (Progressive.constant(2), False, False),
        (Strided(streams=(1,)), True, True),
        (Strided(streams=(1, 2)), False, True),
        (Strided(streams=(2,)), False, False),
        (RandomPermutation(), False, False),
        (Groups(sizes=(1, 1)), True, True),
        (Groups(sizes=(1, 2)), False, True),
        (PermutedGroups(sizes=(1,)), False, False),
        (Diffusion(num_timesteps=4), False, False),
    ],
)
def test_which_policies_are_left_to_right(
    policy: OrderPolicy, always: bool, sometimes: bool
) -> None:
    assert policy.is_left_to_right is always
    assert policy.can_be_left_to_right is sometimes


def test_choosing_among_one_number_draws_nothing() -> None:
    used, fresh = KeyedRng(1, 2), KeyedRng(1, 2)
    assert choose_one((7,), used) == (7,)
    assert used.next_uint64(3).tolist() == fresh.next_uint64(3).tolist()


def test_choosing_reaches_every_number() -> None:
    assert {choose_one((1, 2, 4), KeyedRng(0, k)) for k in range(40)} == {(1,), (2,), (4,)}


@pytest.mark.parametrize(
    ("sizes", "keys"), [((), ["sizes"]), ((0, 1, 65), ["sizes.0", "sizes.2"]), ((1, 64), [])]
)
def test_sizes_are_between_one_and_the_number_of_targets(
    sizes: tuple[int, ...], keys: list[str]
) -> None:
    assert [violation.key for violation in size_violations("sizes", sizes, 64)] == keys


@pytest.mark.parametrize("make", [RandomPermutation, LeftToRight])
def test_policies_of_the_same_keys_are_equal(make: Callable[[], OrderPolicy]) -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
