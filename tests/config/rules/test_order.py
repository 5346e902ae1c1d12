"""Rules on `order`: each broken once, its sentence read, at the top and inside nested policies."""

import pytest

from armd_scale.config.rules import check as rules
from armd_scale.errors import RecipeError
from armd_scale.order.policies import (
    Diffusion,
    Groups,
    LeftToRight,
    Mixture,
    MixtureComponent,
    OrderPolicy,
    OrderStage,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Stages,
    Strided,
)
from tests.support.recipes import SMALL, bend

L2R, RANDOM = LeftToRight(), RandomPermutation()

BROKEN_ORDERS: list[tuple[OrderPolicy, str]] = [
    (
        Progressive(ar_steps=-1, ramp_end=2, rho=3),
        "order.ar_steps must be >= 0 (got -1)",
    ),
    (
        Progressive(ar_steps=3, ramp_end=2, rho=3),
        "order.ar_steps must be <= ramp_end = 2 (got 3)",
    ),
    (
        Progressive(ar_steps=1, ramp_end=2, rho=65),
        "order.rho must be between 1 and data.seq_length = 64 (got 65)",
    ),
    (Strided(streams=()), "order.streams must hold at least one number (got [])"),
    (
        Strided(streams=(1, 65)),
        "order.streams.1 must be between 1 and data.seq_length = 64 (got 65)",
    ),
    (Groups(sizes=(0,)), "order.sizes.0 must be between 1 and data.seq_length = 64 (got 0)"),
    (Groups(sizes=(1,), ramp_end=-1), "order.ramp_end must be >= 0 (got -1)"),
    (PermutedGroups(sizes=()), "order.sizes must hold at least one number (got [])"),
    (Diffusion(num_timesteps=0), "order.num_timesteps must be >= 1 (got 0)"),
    (Mixture(components=()), "order.components must hold at least one order (got [])"),
    (
        Mixture(components=(MixtureComponent(weight=0.0, order=L2R),)),
        "order.components.0.weight must be > 0 (got 0.0)",
    ),
    (Stages(stages=()), "order.stages must hold at least one order (got [])"),
    (
        Stages(stages=(OrderStage(until_step=5, order=L2R),)),
        "order.stages.0.until_step must be left out of the last stage (got 5)",
    ),
    (
        Stages(stages=(OrderStage(order=L2R), OrderStage(order=L2R))),
        "order.stages.0.until_step must be a step after 0 (got null)",
    ),
    (
        Stages(
            stages=(
                OrderStage(until_step=5, order=L2R),
                OrderStage(until_step=5, order=L2R),
                OrderStage(order=L2R),
            )
        ),
        "order.stages.1.until_step must be a step after 5 (got 5)",
    ),
    (
        Stages(
            stages=(
                OrderStage(until_step=5, order=L2R),
                OrderStage(
                    order=Mixture(
                        components=(MixtureComponent(weight=1.0, order=Diffusion(num_timesteps=0)),)
                    )
                ),
            )
        ),
        "order.stages.1.components.0.num_timesteps must be >= 1 (got 0)",
    ),
]


@pytest.mark.parametrize(("order", "sentence"), BROKEN_ORDERS)
def test_a_broken_order_says_so(order: OrderPolicy, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        rules.check(bend(SMALL, {"order": order}))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("order", [RANDOM, Groups(sizes=(2,)), Strided()])
def test_a_plain_stack_takes_no_other_order_than_l2r(order: OrderPolicy) -> None:
    plain = bend(SMALL, {"model.two_stream_layers": 0})
    staged = Stages(stages=(OrderStage(until_step=5, order=L2R), OrderStage(order=order)))
    for path, whole in (("order", order), ("order.stages.1", staged)):
        with pytest.raises(RecipeError, match=f"^{path}.policy must be l2r when"):
            rules.check(bend(plain, {"order": whole}))


def test_a_plain_stack_takes_every_order_that_is_left_to_right() -> None:
    plain = bend(SMALL, {"model.two_stream_layers": 0})
    for order in (Strided(streams=(1,)), Groups(sizes=(1,)), Progressive.constant(1)):
        assert order.is_left_to_right
        assert order.can_be_left_to_right
        rules.check(bend(plain, {"order": order}))
