"""`train.recompute: auto` becomes the cheapest setting that fits the GPUs' memory."""

from dataclasses import replace

import pytest

from armd_scale.plan.estimate import estimate_cost
from armd_scale.plan.memory import gib, memory_by_stage
from armd_scale.plan.recompute import resolve_recompute
from tests.plan.estimates import H100, load
from tests.support.recipes import bend

AUTO = load("pretrain_1b", "train.recompute=auto", "train.micro_batch=4")


def total_gib(setting: str) -> float:
    recipe = bend(AUTO, {"train.recompute": setting})
    return max(gib(rank.total) for rank in memory_by_stage(recipe, 8))


@pytest.mark.parametrize("setting", ["none", "selective", "full"])
def test_the_cheapest_setting_that_fits_is_chosen(setting: str) -> None:
    resolved = resolve_recompute(AUTO, 8, memory_gib=total_gib(setting) + 0.01)
    assert resolved == replace(AUTO, train=replace(AUTO.train, recompute=setting))


def test_full_if_nothing_fits_and_none_if_memory_is_unlimited() -> None:
    assert resolve_recompute(AUTO, 8, memory_gib=1.0).train.recompute == "full"
    assert resolve_recompute(AUTO, 8, memory_gib=None).train.recompute == "none"


def test_an_explicit_setting_stays() -> None:
    explicit = bend(AUTO, {"train.recompute": "selective"})
    assert resolve_recompute(explicit, 8, memory_gib=1.0) is explicit


def test_an_estimate_resolves_auto_as_the_run_does() -> None:
    memory = (total_gib("none") + total_gib("selective")) / 2
    estimate = estimate_cost(AUTO, 8, gpu=H100, gpu_memory_gib=memory)
    assert estimate.recipe.train.recompute == "selective"
    assert estimate.fits
