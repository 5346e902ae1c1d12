"""Policy `stages`: where a stage ends, and from where its ramp counts."""

import pytest

from armd_scale.order.policies import (
    LeftToRight,
    OrderStage,
    Progressive,
    RandomPermutation,
    Stages,
    Strided,
)
from armd_scale.order.rng import KeyedRng

PROGRESSIVE = Progressive(ar_steps=100, ramp_end=400, rho=32)


def test_stages_end_before_until_step_and_ramps_count_from_the_start_of_the_run() -> None:
    policy = Stages(
        stages=(
            OrderStage(until_step=50, order=LeftToRight()),
            OrderStage(until_step=300, order=PROGRESSIVE),
            OrderStage(order=Strided(streams=(4,))),
        )
    )
    assert policy.at_step(49) == LeftToRight()
    assert policy.at_step(50) == LeftToRight()  # the ramp of stage 2 starts at step 100
    assert policy.at_step(250) == PROGRESSIVE.at_step(250) != LeftToRight()
    assert policy.at_step(299) == PROGRESSIVE.at_step(299)
    assert policy.at_step(300) == Strided(streams=(4,))


def test_the_last_stage_continues_even_if_it_names_an_end() -> None:
    policy = Stages(stages=(OrderStage(until_step=10, order=RandomPermutation()),))
    assert str(policy.at_step(10)) == "random"


def test_left_to_right_if_some_stage_can_be() -> None:
    random = OrderStage(order=RandomPermutation())
    opening = OrderStage(until_step=5, order=LeftToRight())
    assert Stages(stages=(opening, random)).can_be_left_to_right
    assert not Stages(stages=(opening, random)).is_left_to_right
    assert not Stages(stages=(random,)).can_be_left_to_right
    assert Stages(stages=(OrderStage(order=LeftToRight()),)).is_left_to_right


def test_blocks_need_a_step_first() -> None:
    policy = Stages(stages=(OrderStage(order=LeftToRight()),))
    with pytest.raises(AssertionError, match=r"call at_step\(\) first"):
        policy.blocks(4, KeyedRng(0, 0))
