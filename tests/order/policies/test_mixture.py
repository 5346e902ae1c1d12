"""Policy `mixture`: components at a step, and what they are together."""

import pytest

from armd_scale.order.policies import (
    LeftToRight,
    Mixture,
    MixtureComponent,
    OrderPolicy,
    Progressive,
    RandomPermutation,
    Strided,
)
from armd_scale.order.rng import KeyedRng

PROGRESSIVE = Progressive(ar_steps=100, ramp_end=400, rho=32)


def mixture_of(*orders: OrderPolicy) -> Mixture:
    return Mixture(components=tuple(MixtureComponent(weight=1.0, order=order) for order in orders))


def test_at_a_step_it_mixes_its_components_at_that_step() -> None:
    components = (
        MixtureComponent(weight=0.25, order=PROGRESSIVE),
        MixtureComponent(weight=0.75, order=Strided(streams=(2,), joint=False)),
    )
    order = Mixture(components=components).at_step(400)
    assert str(order) == "mixture(0.25*progressive:32+0.75*strided-ar:2)"


def test_left_to_right_always_and_sometimes() -> None:
    pure = mixture_of(LeftToRight(), Strided(streams=(1,)))
    mixed = mixture_of(LeftToRight(), RandomPermutation())
    assert (pure.is_left_to_right, pure.can_be_left_to_right) == (True, True)
    assert (mixed.is_left_to_right, mixed.can_be_left_to_right) == (False, True)
    assert not mixture_of(RandomPermutation()).can_be_left_to_right


def test_a_choice_reaches_components_of_mixtures_inside() -> None:
    nested = mixture_of(mixture_of(Strided(streams=(2, 4))), RandomPermutation())
    chosen = {nested.choose(KeyedRng(0, sample)) for sample in range(60)}
    assert chosen == {Strided(streams=(2,)), Strided(streams=(4,)), RandomPermutation()}


def test_blocks_need_a_choice_first() -> None:
    with pytest.raises(AssertionError, match=r"call choose\(\) first"):
        mixture_of(LeftToRight()).blocks(4, KeyedRng(0, 0))
