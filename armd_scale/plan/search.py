"""Search the fastest layouts of a recipe on a number of GPUs, among all that run and fit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from armd_scale.config import derived
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import RecipeError
from armd_scale.plan.estimate import Estimate, estimate_cost
from armd_scale.plan.gpus import GPUS_PER_NODE
from armd_scale.plan.memory import gib

RECOMPUTE = ("none", "selective", "full")
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
SPEED_TOLERANCE = 0.005
"""Relative difference below which two speeds count as equal, because an estimate is no finer; of
equal ones the layout with more free memory wins."""


@dataclass(frozen=True)
class SearchResult:
    """The best layouts, and how many were tried."""

    best: tuple[Estimate, ...]
    """Fastest first."""
    tried: int
    """Layouts that run."""
    out_of_memory: int
    """Layouts that run but do not fit."""


def search_layouts(
    recipe: ResolvedRecipe, world_size: int, *, count: int = 5, **options: Any
) -> SearchResult:
    """Search tensor, pipeline and data parallelism, ZeRO stage, micro-batch and recomputation.

    The global batch does not change, so every layout trains the same model.

    Args:
        recipe: a resolved recipe.
        world_size: number of GPUs.
        count: number of layouts to return.
        options: keyword arguments of `estimate_cost`.

    Raises:
        RecipeError: no layout fits.
    """
    estimates = list(_estimates(recipe, world_size, **options))
    fitting = sorted((estimate for estimate in estimates if estimate.fits), key=_preference)
    if not fitting:
        raise _nothing_fits(world_size, estimates)
    return SearchResult(tuple(fitting[:count]), len(estimates), len(estimates) - len(fitting))


def _estimates(recipe: ResolvedRecipe, world_size: int, **options: Any) -> Iterator[Estimate]:
    """Yield the estimate of every layout that the rules accept."""
    for candidate in _candidates(recipe, world_size):
        try:
            rules.check(candidate)
            estimate = estimate_cost(candidate, world_size, **options)
        except RecipeError:
            continue
        yield estimate


def _candidates(recipe: ResolvedRecipe, world_size: int) -> Iterator[ResolvedRecipe]:
    """Yield every layout that may run; the rules reject the others."""
    # bf16 weights need the fp32 master weights that ZeRO keeps, so stage 0 is for fp32.
    zero_stages = (0, 1, 2, 3) if recipe.train.precision == "fp32" else (1, 2, 3)
    for parallel in _parallel_layouts(recipe, world_size):
        for zero_stage, micro_batch, recompute in product(zero_stages, MICRO_BATCHES, RECOMPUTE):
            candidate = replace(
                recipe,
                parallel=parallel,
                optim=replace(recipe.optim, zero_stage=zero_stage),
                train=replace(recipe.train, micro_batch=micro_batch, recompute=recompute),
            )
            # Where gradients stay whole until the last micro-batch (with a pipeline or offload),
            # ZeRO 2 holds and sends exactly what ZeRO 1 does.
            if zero_stage == 2 and not derived.reduces_every_micro_batch(
                candidate.optim, pipeline_size=candidate.parallel.pipeline
            ):
                continue
            yield candidate


def _parallel_layouts(recipe: ResolvedRecipe, world_size: int) -> Iterator[ParallelConfig]:
    """Yield tensor sizes within a node, pipeline sizes and chunk counts that divide the layers."""
    layers = recipe.model.layers
    for tensor in (n for n in range(1, GPUS_PER_NODE + 1) if world_size % n == 0):
        for pipeline in (n for n in range(1, layers + 1) if world_size // tensor % n == 0):
            max_chunks = layers // pipeline if pipeline > 1 else 1
            for virtual in (n for n in range(1, max_chunks + 1) if layers % (n * pipeline) == 0):
                for sequence in {False, tensor > 1}:
                    yield ParallelConfig(
                        tensor=tensor,
                        pipeline=pipeline,
                        virtual_pipeline=virtual,
                        sequence=sequence,
                    )


def _peak_gib(estimate: Estimate) -> float:
    return gib(estimate.peak_memory.total)


def _preference(estimate: Estimate) -> tuple[int, float]:
    """Sort key: faster first; among equally fast layouts the one with more free memory."""
    # Equal multiples of the tolerance on a logarithmic scale are equal speeds.
    speed = round(math.log(estimate.tokens_per_second) / SPEED_TOLERANCE)
    return -speed, _peak_gib(estimate)


def _nothing_fits(world_size: int, estimates: list[Estimate]) -> RecipeError:
    if not estimates:
        return RecipeError(
            f"train.global_batch and the model must divide evenly among {world_size} GPUs in at "
            "least one layout (got none): change --gpus or train.global_batch"
        )
    smallest = min(estimates, key=_peak_gib)
    return RecipeError(
        f"at least one layout must fit {smallest.gpu_memory_gib:g} GiB on each of {world_size} "
        f"GPUs (the smallest needs {_peak_gib(smallest):.1f} GiB): use more or larger GPUs"
    )


def layout_overrides(estimate: Estimate) -> list[str]:
    """Return the `section.key=value` overrides that make a training command use this layout."""
    recipe, parallel = estimate.recipe, estimate.recipe.parallel
    return [
        f"parallel.tensor={parallel.tensor}",
        f"parallel.pipeline={parallel.pipeline}",
        f"parallel.virtual_pipeline={parallel.virtual_pipeline}",
        f"parallel.sequence={str(parallel.sequence).lower()}",
        f"optim.zero_stage={recipe.optim.zero_stage}",
        f"train.micro_batch={recipe.train.micro_batch}",
        f"train.recompute={recipe.train.recompute}",
    ]


def explain_losses(estimate: Estimate) -> str:
    """Say which overheads take at least 1 % of a step, largest first, and the memory in use."""
    time = estimate.step_time(one_stream=False)
    losses = {
        "tensor-parallel communication": time.tensor,
        "pipeline communication": time.pipeline,
        "bubble": time.bubble,
        "data-parallel communication": time.data,
        "AdamW": time.update,
        "recomputation": time.compute * estimate.recomputed_share,
    }
    largest_first = sorted(losses.items(), key=lambda item: -item[1])
    parts = [
        f"{name} {100 * seconds / time.total:.0f} %"
        for name, seconds in largest_first
        if seconds >= 0.01 * time.total
    ]
    return ", ".join([*parts, f"{_peak_gib(estimate):.0f} of {estimate.gpu_memory_gib:g} GiB"])
