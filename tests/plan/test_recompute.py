"""What is computed again, where the recipe leaves it to the memory at hand."""

from dataclasses import replace

import pytest

from armd_scale.plan.estimate import plan_for
from armd_scale.plan.gpus import GPUS
from armd_scale.plan.memory import gib, memory_by_stage
from armd_scale.plan.recompute import resolve_recompute
from tests.plan.test_plan import load
from tests.support.recipes import bend

AUTO = load("pretrain_1b", "train.recompute=auto", "train.micro_batch=4")


def total_gib(kind: str) -> float:
    recipe = bend(AUTO, {"train.recompute": kind})
    return max(gib(rank.total) for rank in memory_by_stage(recipe, 8))


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_the_cheapest_that_fits_is_taken(kind: str) -> None:
    settled = resolve_recompute(AUTO, 8, memory_gib=total_gib(kind) + 0.01)
    assert settled == replace(AUTO, train=replace(AUTO.train, recompute=kind))


def test_full_where_nothing_fits_and_none_where_memory_has_no_end() -> None:
    assert resolve_recompute(AUTO, 8, memory_gib=1.0).train.recompute == "full"
    assert resolve_recompute(AUTO, 8, memory_gib=None).train.recompute == "none"


def test_what_is_given_stays() -> None:
    given = bend(AUTO, {"train.recompute": "selective"})
    assert resolve_recompute(given, 8, memory_gib=1.0) is given


def test_a_plan_is_of_what_would_run() -> None:
    memory = (total_gib("none") + total_gib("selective")) / 2
    plan = plan_for(AUTO, 8, gpu=GPUS["h100"], gpu_memory_gib=memory)
    assert plan.recipe.train.recompute == "selective"
    assert plan.fits
