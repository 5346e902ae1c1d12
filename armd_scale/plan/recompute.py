"""Resolve `train.recompute: auto` to the cheapest setting that fits the GPUs' memory."""

from dataclasses import replace
from typing import Literal

from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.plan.memory import gib, memory_by_stage

CHEAPEST_FIRST: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


def resolve_recompute(
    recipe: ResolvedRecipe, world_size: int, *, memory_gib: float | None
) -> ResolvedRecipe:
    """Return the recipe with `train.recompute: auto` resolved; other settings stay.

    Picks the cheapest setting with which every pipeline stage fits. If none fits, `full`: the run
    or the estimate then reports what is too large.

    Args:
        recipe: passes the rules for `world_size` processes; it is resolved.
        world_size: number of processes.
        memory_gib: memory of each GPU; None on CPU, where nothing is ever recomputed.
    """
    if recipe.train.recompute != "auto":
        return recipe
    candidates = [
        replace(recipe, train=replace(recipe.train, recompute=setting))
        for setting in CHEAPEST_FIRST
    ]
    fitting = (recipe for recipe in candidates if _fits(recipe, world_size, memory_gib))
    return next(fitting, candidates[-1])


def _fits(recipe: ResolvedRecipe, world_size: int, memory_gib: float | None) -> bool:
    if memory_gib is None:
        return True
    return max(gib(rank.total) for rank in memory_by_stage(recipe, world_size)) <= memory_gib
