"""Step-dependent amounts: where each begins, what it passes, where it ends."""

import pytest

from armd_scale.config.schema import (
    DiffusionConfig,
    GroupsConfig,
    LeftToRightConfig,
    MixtureComponent,
    MixtureConfig,
    OrderConfig,
    OrderStage,
    PermutedGroupsConfig,
    ProgressiveConfig,
    RandomConfig,
    StagesConfig,
    StridedConfig,
)
from armd_scale.order.curriculum import order_at_step
from armd_scale.order.policies import Groups, LeftToRight, Progressive, Strided

PROGRESSIVE = ProgressiveConfig(ar_steps=100, ramp_end=400, rho=32)


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (LeftToRightConfig(), "l2r"),
        (StridedConfig(), "strided-joint:1,2,4"),
        (StridedConfig(streams=(2,), joint=False), "strided:2"),
        (RandomConfig(), "random"),
        (GroupsConfig(sizes=(1, 2)), "groups:1,2"),
        (PermutedGroupsConfig(sizes=(4, 8)), "permuted_groups:4,8"),
        (DiffusionConfig(num_timesteps=64), "diffusion:64"),
    ],
)
def test_orders_that_no_step_changes(config: OrderConfig, spec: str) -> None:
    assert {str(order_at_step(config, step)) for step in (0, 1, 10**6)} == {spec}


def test_progressive_starts_in_text_order() -> None:
    assert {order_at_step(PROGRESSIVE, step) for step in range(100)} == {LeftToRight()}


def test_progressive_grows_in_a_straight_line_and_stays() -> None:
    amounts = [order_at_step(PROGRESSIVE, step) for step in range(100, 401)]
    shuffled = [order.num_shuffled for order in amounts if isinstance(order, Progressive)]
    assert len(shuffled) == len(amounts)
    assert shuffled[0] == 1
    assert shuffled[-1] == 32
    assert shuffled[-2] == 31
    for done, amount in enumerate(shuffled):
        assert 0 <= 1 + 31 * done / 300 - amount < 1
    assert order_at_step(PROGRESSIVE, 10**6) == Progressive(32)


def test_progressive_without_a_ramp_jumps() -> None:
    config = ProgressiveConfig(ar_steps=10, ramp_end=10, rho=8)
    assert [order_at_step(config, step) for step in (9, 10)] == [LeftToRight(), Progressive(8)]


def test_group_sizes_take_equal_spans_of_the_ramp() -> None:
    config = GroupsConfig(sizes=(1, 2, 3, 4), ramp_end=100)
    sizes = [order_at_step(config, step) for step in range(120)]
    for turn, size in enumerate((1, 2, 3)):
        assert set(sizes[25 * turn : 25 * turn + 25]) == {Groups((size,))}
    assert set(sizes[75:]) == {Groups((4,))}


def test_more_sizes_than_ramp_steps_end_at_the_last() -> None:
    config = PermutedGroupsConfig(sizes=(1, 2, 4, 8), ramp_end=2)
    assert [str(order_at_step(config, step)) for step in (0, 1, 2)] == [
        "permuted_groups:1",
        "permuted_groups:4",
        "permuted_groups:8",
    ]


def test_mixture_fills_in_its_parts() -> None:
    parts = (
        MixtureComponent(weight=0.25, order=PROGRESSIVE),
        MixtureComponent(weight=0.75, order=StridedConfig(streams=(2,), joint=False)),
    )
    order = order_at_step(MixtureConfig(components=parts), 400)
    assert str(order) == "mixture(0.25*progressive:32+0.75*strided:2)"


def test_stages_end_before_until_and_count_from_the_run_s_start() -> None:
    config = StagesConfig(
        stages=(
            OrderStage(until_step=50, order=LeftToRightConfig()),
            OrderStage(until_step=300, order=PROGRESSIVE),
            OrderStage(order=StridedConfig(streams=(4,))),
        )
    )
    assert order_at_step(config, 49) == LeftToRight()
    assert order_at_step(config, 50) == LeftToRight()  # the ramp of stage 2 starts at step 100
    assert order_at_step(config, 250) == order_at_step(PROGRESSIVE, 250) != LeftToRight()
    assert order_at_step(config, 299) == order_at_step(PROGRESSIVE, 299)
    assert order_at_step(config, 300) == Strided((4,), joint=True)


def test_the_last_stage_goes_on_though_it_names_an_end() -> None:
    config = StagesConfig(stages=(OrderStage(until_step=10, order=RandomConfig()),))
    assert str(order_at_step(config, 10)) == "random"
