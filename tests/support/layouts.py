"""The layouts that tests compare, and a few steps of a recipe on any of them."""

from dataclasses import dataclass
from pathlib import Path

import jaxtyping
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.rules.check import check
from armd_scale.config.schema import ParallelConfig, Recipe
from armd_scale.train.trainer import Trainer


@dataclass(frozen=True)
class Layout:
    """A number of processes and how the model is split over them."""

    size: int
    parallel: ParallelConfig
    zero_stage: int


def _layout(size: int, zero_stage: int = 1, **parallel: object) -> Layout:
    return Layout(size, ParallelConfig(**parallel), zero_stage)  # type: ignore[arg-type]


LAYOUTS = {
    "1": _layout(1, 0),
    "TP2": _layout(2, tensor=2),
    "TP2+SP": _layout(2, tensor=2, sequence=True),
    "PP2": _layout(2, pipeline=2),
    "PP4": _layout(4, pipeline=4),
    "PP2 interleaved": _layout(2, pipeline=2, virtual_pipeline=2),
    "DP2 Z1": _layout(2, 1),
    "DP2 Z2": _layout(2, 2),
    "DP2 Z3": _layout(2, 3),
    "DP4 Z3": _layout(4, 3),
    "TP2xDP2 Z1": _layout(4, 1, tensor=2),
    "TP2xDP2 Z2": _layout(4, 2, tensor=2),
    "TP2xDP2 Z3": _layout(4, 3, tensor=2),
    "TP2xPP2": _layout(4, tensor=2, pipeline=2),
    "TP2+SPxPP2": _layout(4, tensor=2, pipeline=2, sequence=True),
    "PP2xDP2 Z1": _layout(4, 1, pipeline=2),
    "PP2xDP2 Z2": _layout(4, 2, pipeline=2),
}


def curves(
    groups: ProcessGroupCollection,
    recipes: list[Recipe],
    steps: int,
    save_at: int | None = None,
    check_shapes: bool = True,
) -> list[list[tuple[float | None, ...]]]:
    """Loss and gradient norm of every step of every recipe, and the KL term if it has a teacher.

    Args:
        groups: process groups of the layout that all recipes have.
        recipes: trained one after another, from their checkpoint if `checkpoint.resume` names one.
        steps: number of steps of each.
        save_at: save a checkpoint after this step.
        check_shapes: check the shapes in annotations, which makes a small step three times as slow.
    """
    jaxtyping.config.update("jaxtyping_disable", not check_shapes)
    try:
        return [_curve(groups, recipe, steps, save_at) for recipe in recipes]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def _curve(
    groups: ProcessGroupCollection, recipe: Recipe, steps: int, save_at: int | None
) -> list[tuple[float | None, ...]]:
    check(recipe)
    curve = []
    with Trainer.from_recipe(recipe, groups=groups) as trainer:
        for _ in range(steps):
            result = trainer.train_step()
            kl = [] if recipe.train.distillation is None else [result.kl]
            curve.append((result.loss, result.grad_norm, *kl))
            if trainer.state.step == save_at:
                trainer.save()
    return curve


def checkpoints_of(recipe: Recipe) -> Path:
    """The folder of a run's checkpoints."""
    return Path(recipe.run.folder) / "checkpoints"
