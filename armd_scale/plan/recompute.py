"""What the backward pass computes again, where the recipe leaves it to the memory at hand."""

from dataclasses import replace
from typing import Literal

from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.plan.memory import gib, memory_by_stage

CHEAPEST_FIRST: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


def resolve_recompute(
    recipe: ResolvedRecipe, world_size: int, *, memory_gib: float | None
) -> ResolvedRecipe:
    """The recipe with `train.recompute: auto` as the cheapest that fits on every pipeline stage.

    `full` where nothing fits: then the run, or the plan, says what is too large.

    Args:
        recipe: passes the rules for `world_size` processes.
        world_size: number of processes.
        memory_gib: of each of them; None where it does not end, as on CPU.
    """
    if recipe.train.recompute != "auto":
        return recipe
    candidates = [
        replace(recipe, train=replace(recipe.train, recompute=kind)) for kind in CHEAPEST_FIRST
    ]
    fitting = (one for one in candidates if _fits(one, world_size, memory_gib))
    return next(fitting, candidates[-1])


def _fits(recipe: ResolvedRecipe, world_size: int, memory_gib: float | None) -> bool:
    if memory_gib is None:
        return True
    return max(gib(rank.total) for rank in memory_by_stage(recipe, world_size)) <= memory_gib
