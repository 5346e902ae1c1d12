"""A few steps of a recipe on whatever layout the ranks form."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.derived import accumulation_steps
from armd_scale.config.rules.check import check, check_world
from armd_scale.config.schema import ParallelConfig, Recipe
from armd_scale.optim.lr_schedule import learning_rate_at
from armd_scale.parallel.environment import read_environment
from armd_scale.train.build import (
    TrainerComponents,
    build_network,
    find_checkpoint,
    initial_checkpoint,
    make_schedule_chunks,
)
from armd_scale.train.callbacks.checkpointer import Checkpointer
from armd_scale.train.data import open_samples
from armd_scale.train.step import train_step
from armd_scale.train.teacher import load_teacher, open_teacher
from armd_scale.train.trainer import build_optimizer, micro_batches


@dataclass(frozen=True)
class Layout:
    """Processes, and how they share a model."""

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
    groups: ProcessGroupCollection, recipes: list[Recipe], steps: int, save_at: int | None = None
) -> list[list[tuple[float | None, ...]]]:
    """Loss and gradient norm of every step of every recipe, from its start or its checkpoint.

    Where a recipe has a parent, the divergence from it as well.

    Args:
        groups: of the layout that all recipes have.
        recipes: what to run, one after another.
        steps: how many steps of each.
        save_at: a step after which to save a checkpoint in the run's folder.
    """
    return [_curve(groups, recipe, steps, save_at) for recipe in recipes]


def _curve(
    groups: ProcessGroupCollection, recipe: Recipe, steps: int, save_at: int | None
) -> list[tuple[float | None, ...]]:
    check(recipe)
    check_world(recipe, torch.distributed.get_world_size())
    resumed = find_checkpoint(recipe)
    weights = initial_checkpoint(recipe, resumed)
    network = build_network(recipe, weights, groups=groups, device=torch.device("cpu"))
    engine, average, state = build_optimizer(recipe, network, resumed)
    parent = load_teacher(recipe, open_teacher(recipe), groups=groups, device=torch.device("cpu"))
    stages = make_schedule_chunks(engine, parent)
    parts = TrainerComponents(
        recipe, read_environment(), groups, network, engine, stages, parent=parent
    )
    batches = iter(micro_batches(parts, open_samples(recipe), state))
    save = Checkpointer(parts, state, average=average, tokenizer=None)
    count = accumulation_steps(recipe.train, groups.dp.size())
    curve = []
    for _ in range(steps):
        result = train_step(
            engine,
            parts.stages,
            [next(batches) for _ in range(count)],
            learning_rate=learning_rate_at(recipe.optim, recipe.train, state.step),
            groups=groups,
            started=time.perf_counter(),
            parent=parent,
        )
        state = state.advance(samples=recipe.train.global_batch, tokens=result.tokens)
        divergence = [] if parent is None else [result.kl]
        curve.append((result.loss, result.grad_norm, *divergence))
        if state.step == save_at:
            save.on_train_end(state)
    return curve


def checkpoints_of(recipe: Recipe) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(recipe.run.folder) / "checkpoints"
