"""Learning rate at the corners of each schedule."""

import math
from typing import Any

import pytest

from armd_scale.config.resolve import ResolvedOptim
from armd_scale.config.schema import TrainConfig
from armd_scale.optim.lr_schedule import learning_rate_at

STEPS, WARMUP = 100, 10


def rate(step: int, schedule: Any, *, warmup: int = WARMUP, decay: int | None = None) -> float:
    optim = ResolvedOptim(
        lr=1e-2,
        min_lr=1e-3,
        warmup_steps=warmup,
        schedule=schedule,
        decay_steps=decay if decay is not None else STEPS // 10,
    )
    train = TrainConfig(steps=STEPS, micro_batch=1, global_batch=1, precision="fp32")
    return learning_rate_at(optim, train, step)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warmup_grows_linearly_and_reaches_the_peak_in_its_last_step(schedule: str) -> None:
    assert rate(0, schedule) == pytest.approx(1e-3)
    assert rate(4, schedule) == pytest.approx(5e-3)
    assert rate(WARMUP - 1, schedule) == 1e-2
    assert rate(WARMUP, schedule) == pytest.approx(1e-2)
    assert rate(0, schedule, warmup=0) == pytest.approx(1e-2)


def test_cosine_ends_at_min_lr() -> None:
    assert rate(STEPS - 1, "cosine") == pytest.approx(1e-3)
    # The middle of the 89 steps between warmup and the last step lies between steps 54 and 55.
    assert (rate(54, "cosine") + rate(55, "cosine")) / 2 == pytest.approx(5.5e-3)
    step = WARMUP + 30
    assert rate(step, "cosine") == pytest.approx(
        1e-3 + 9e-3 * (1 + math.cos(math.pi * 30 / 89)) / 2
    )


def test_wsd_is_flat_and_then_decays_linearly() -> None:
    assert {rate(step, "wsd", decay=20) for step in range(WARMUP, 81)} == {1e-2}
    assert rate(81, "wsd", decay=20) < 1e-2
    assert rate(STEPS - 1, "wsd", decay=20) == pytest.approx(1e-3)
    decrements = [
        rate(s, "wsd", decay=20) - rate(s + 1, "wsd", decay=20) for s in range(80, STEPS - 1)
    ]
    assert decrements == pytest.approx([9e-3 / 19] * 19)
    assert rate(90, "wsd") == 1e-2
    assert rate(91, "wsd") < 1e-2


def test_constant_does_not_depend_on_the_length_of_the_run() -> None:
    assert {rate(step, "constant") for step in range(WARMUP, 3 * STEPS)} == {1e-2}


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_is_constant_after_the_last_step(schedule: str) -> None:
    assert rate(STEPS, schedule) == rate(5 * STEPS, schedule) == rate(STEPS - 1, schedule)
