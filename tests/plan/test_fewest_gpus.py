"""The fewest GPUs of a recipe, and the refusal of estimates that do not fit."""

from dataclasses import replace

import pytest

from armd_scale.errors import RecipeError
from armd_scale.plan.estimate import estimate_cost
from armd_scale.plan.fewest_gpus import estimate_on_fewest_gpus, require_fit
from tests.plan.estimates import H100, estimate_on_h100, load


def test_an_estimate_that_does_not_fit_is_refused_with_advice() -> None:
    full = estimate_on_h100("pretrain_1b", 1, "train.micro_batch=64", "train.recompute=none")
    with pytest.raises(RecipeError, match=r"fit 79 GiB .* activations\): lower train.micro_batch"):
        require_fit(full)
    heavy = estimate_on_h100("pretrain_70b", 32, "train.recompute=full")
    with pytest.raises(RecipeError, match="split the model further"):
        require_fit(replace(heavy, gpu_memory_gib=20.0))


def test_the_fewest_gpus_are_the_first_that_fit() -> None:
    recipe = load("pretrain_7b", "parallel.pipeline=1", "parallel.virtual_pipeline=1")
    fewest = estimate_on_fewest_gpus(recipe, gpu=H100, gpu_memory_gib=30.0)
    assert fewest.fits
    assert fewest.world_size % 4 == 0
    half = estimate_cost(recipe, fewest.world_size // 2, gpu=H100, gpu_memory_gib=30.0)
    assert not half.fits


def test_where_nothing_fits_the_smallest_memory_is_estimated() -> None:
    recipe = load("pretrain_7b", "parallel.pipeline=1", "parallel.virtual_pipeline=1")
    smallest = estimate_on_fewest_gpus(recipe, gpu=H100, gpu_memory_gib=5.0)
    assert not smallest.fits
    replica = estimate_cost(recipe, 4, gpu=H100, gpu_memory_gib=5.0)
    assert smallest.peak_memory.total <= replica.peak_memory.total
