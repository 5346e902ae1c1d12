"""The search returns layouts that run, fit and are fastest."""

from dataclasses import replace

import pytest

from armd_scale.errors import RecipeError
from armd_scale.plan.estimate import estimate_cost
from armd_scale.plan.search import explain_losses, layout_overrides, search_layouts
from tests.plan.estimates import H100, load


def test_the_search_returns_layouts_that_run_fit_and_are_fastest() -> None:
    small = ("train.global_batch=16", "model.layers=4", "model.two_stream_layers=2")
    recipe = load("pretrain_1b", *small)
    result = search_layouts(recipe, 4, gpu=H100, gpu_memory_gib=6.0)
    speeds = [estimate.tokens_per_second for estimate in result.best]
    assert len(speeds) == 5
    assert speeds[0] >= max(speeds) * 0.99
    assert all(estimate.fits for estimate in result.best)
    assert 0 < result.out_of_memory < result.tried
    unchanged = replace(recipe, train=replace(recipe.train, micro_batch=1))
    assert speeds[0] >= estimate_cost(unchanged, 4, gpu=H100).tokens_per_second
    assert "of 6 GiB" in explain_losses(result.best[0])
    reloaded = load("pretrain_1b", *small, *layout_overrides(result.best[0]))
    assert estimate_cost(reloaded, 4, gpu=H100).step_seconds == result.best[0].step_seconds


def test_the_search_tries_zero_2_only_where_it_holds_less_than_zero_1() -> None:
    recipe = load(
        "pretrain_1b", "train.global_batch=16", "model.layers=4", "model.two_stream_layers=2"
    )
    result = search_layouts(recipe, 4, count=1000, gpu=H100, gpu_memory_gib=80.0)
    layouts = {
        (estimate.recipe.optim.zero_stage, estimate.recipe.parallel.pipeline > 1)
        for estimate in result.best
    }
    assert layouts == {(1, False), (1, True), (2, False), (3, False)}


def test_zero_2_is_found_where_whole_gradients_do_not_fit() -> None:
    """A layout fits under ZeRO 2 and not under ZeRO 1 because it holds a shard of the gradients."""
    recipe = load("pretrain_1b", "train.global_batch=8", "optim.zero_stage=1")
    changes = {"micro_batch": 1, "recompute": "full"}
    zero_1, zero_2 = (
        estimate_cost(
            replace(
                recipe,
                optim=replace(recipe.optim, zero_stage=stage),
                train=replace(recipe.train, **changes),
            ),
            8,
            gpu=H100,
        )
        for stage in (1, 2)
    )
    saved = zero_1.peak_memory.gradients - zero_2.peak_memory.gradients
    assert saved == pytest.approx(zero_1.peak_memory.gradients * 7 / 8)
    assert zero_2.peak_memory.total < zero_1.peak_memory.total


def test_a_search_without_a_result_says_why() -> None:
    with pytest.raises(RecipeError, match=r"fit 2 GiB .* smallest needs .*more or larger GPUs"):
        search_layouts(load("demo_cpu"), 1, gpu=H100, gpu_memory_gib=2.0)
    with pytest.raises(RecipeError, match="divide evenly among 7 GPUs"):
        search_layouts(load("pretrain_1b"), 7, gpu=H100)
