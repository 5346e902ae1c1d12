"""Recipes of the repository and their estimates on H100 GPUs."""

from pathlib import Path

from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.plan.cli import resolve_for_plan
from armd_scale.plan.estimate import Estimate, estimate_cost
from armd_scale.plan.gpus import GPUS

ROOT = Path(__file__).parents[2]
H100 = GPUS["h100"]


def load(name: str, *overrides: str) -> ResolvedRecipe:
    """Return a recipe of the repository; GPT-2's vocabulary if its shards do not exist."""
    recipe, _ = resolve_for_plan(load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides))
    return recipe


def estimate_on_h100(name: str, world_size: int, *overrides: str) -> Estimate:
    """Return the estimate of a recipe of the repository on H100 GPUs."""
    return estimate_cost(load(name, *overrides), world_size, gpu=H100)
