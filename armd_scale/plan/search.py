"""The fastest layouts of a recipe on a number of GPUs, among all that run and fit."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import RecipeError
from armd_scale.plan.estimate import Estimate, plan_for
from armd_scale.plan.gpus import GPUS_PER_NODE
from armd_scale.plan.memory import gib

RECOMPUTE = ("none", "selective", "full")
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
SPEED_TOLERANCE = 0.005
"""Speeds closer than this are equal as far as an estimate can tell; the roomier one is better."""


@dataclass(frozen=True)
class SearchResult:
    """What a search saw."""

    best: tuple[Estimate, ...]
    """Fastest first."""
    tried: int
    out_of_memory: int
    """Layouts that run but do not fit."""


def best_layouts(
    recipe: ResolvedRecipe, world_size: int, *, count: int = 5, **options: Any
) -> SearchResult:
    """Searches tensor, pipeline and data parallelism, ZeRO, micro-batch and recomputation.

    The global batch stays as it is, so every layout trains the same model.

    Args:
        recipe: a resolved recipe.
        world_size: number of GPUs.
        count: how many to give back.
        options: of `plan_for`.

    Raises:
        RecipeError: no layout fits.
    """
    fitting, seen = [], Counter[str]()
    least: Estimate | None = None
    for candidate in _candidates(recipe, world_size):
        try:
            rules.check(candidate)
            plan = plan_for(candidate, world_size, **options)
        except RecipeError:
            continue
        seen["tried"] += 1
        if plan.fits:
            fitting.append(plan)
        else:
            seen["overfull"] += 1
            least = min(filter(None, (least, plan)), key=_peak_gib)
    if not fitting:
        raise _nothing_fits(world_size, least)
    fitting.sort(key=_preference)
    return SearchResult(tuple(fitting[:count]), seen["tried"], seen["overfull"])


def _candidates(recipe: ResolvedRecipe, world_size: int) -> Iterator[ResolvedRecipe]:
    """Every layout that is not plainly impossible; the rules judge the rest.

    ZeRO 2 is left out: gradients stay whole until the last micro-batch is through, so it holds and
    sends what stage 1 does.
    """
    zero_stages = (0, 1, 3) if recipe.train.precision == "fp32" else (1, 3)
    for parallel in _splits(recipe, world_size):
        for zero_stage, micro_batch, recompute in product(zero_stages, MICRO_BATCHES, RECOMPUTE):
            yield replace(
                recipe,
                parallel=parallel,
                optim=replace(recipe.optim, zero_stage=zero_stage),
                train=replace(recipe.train, micro_batch=micro_batch, recompute=recompute),
            )


def _splits(recipe: ResolvedRecipe, world_size: int) -> Iterator[ParallelConfig]:
    layers = recipe.model.layers
    for tensor in (n for n in range(1, GPUS_PER_NODE + 1) if world_size % n == 0):
        for pipeline in (n for n in range(1, layers + 1) if world_size // tensor % n == 0):
            deepest = layers // pipeline if pipeline > 1 else 1
            for virtual in (n for n in range(1, deepest + 1) if layers % (n * pipeline) == 0):
                for sequence in {False, tensor > 1}:
                    yield ParallelConfig(
                        tensor=tensor,
                        pipeline=pipeline,
                        virtual_pipeline=virtual,
                        sequence=sequence,
                    )


def _peak_gib(plan: Estimate) -> float:
    return gib(plan.memory[plan.peak_stage].total)


def _preference(plan: Estimate) -> tuple[int, float]:
    """Faster first; among equals the one with more room."""
    return -round(math.log(plan.tokens_per_second) / SPEED_TOLERANCE), _peak_gib(plan)


def _nothing_fits(world_size: int, least: Estimate | None) -> RecipeError:
    if least is None:
        return RecipeError(
            f"train.global_batch and the model must divide among {world_size} GPUs in some way, "
            "and do not; change --gpus or train.global_batch"
        )
    return RecipeError(
        f"some layout must fit {least.gpu_memory_gib:g} GiB on each of {world_size} GPUs, and the "
        f"smallest takes {_peak_gib(least):.1f} GiB; use more or larger GPUs"
    )


def overrides(plan: Estimate) -> list[str]:
    """What to add to the training command for a layout."""
    recipe, parallel = plan.recipe, plan.recipe.parallel
    return [
        f"parallel.tensor={parallel.tensor}",
        f"parallel.pipeline={parallel.pipeline}",
        f"parallel.virtual_pipeline={parallel.virtual_pipeline}",
        f"parallel.sequence={str(parallel.sequence).lower()}",
        f"optim.zero_stage={recipe.optim.zero_stage}",
        f"train.micro_batch={recipe.train.micro_batch}",
        f"train.recompute={recipe.train.recompute}",
    ]


def explain_losses(plan: Estimate) -> str:
    """What a layout loses to what, largest loss first, and how full it is."""
    time = plan.step_time(one_stream=False)
    losses = {
        "tensor messages": time.tensor,
        "stage messages": time.pipeline,
        "bubble": time.bubble,
        "data-parallel messages": time.data,
        "AdamW": time.update,
        "recomputation": time.compute * plan.recomputed_share,
    }
    by_size = sorted(losses.items(), key=lambda item: -item[1])
    named = [
        f"{name} {100 * seconds / time.total:.0f} %"
        for name, seconds in by_size
        if seconds >= 0.01 * time.total
    ]
    return ", ".join([*named, f"{_peak_gib(plan):.0f} of {plan.gpu_memory_gib:g} GiB"])
