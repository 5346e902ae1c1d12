"""A recipe that holds every rule, to be bent by tests."""

from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    Recipe,
    RunConfig,
    TrainConfig,
    WandbConfig,
)
from armd_scale.order.policies import LeftToRight

RecipeT = TypeVar("RecipeT", bound=Recipe)

SMALL = Recipe(
    run=RunConfig(name="small", folder="runs/small"),
    data=DataConfig(train="shards/train", valid="shards/valid", seq_length=64),
    order=LeftToRight(),
    model=ModelConfig(layers=4, hidden=32, ffn_hidden=64, heads=4, kv_heads=2),
    parallel=ParallelConfig(),
    optim=OptimConfig(warmup_steps=10, schedule="cosine"),
    train=TrainConfig(steps=100, micro_batch=2, global_batch=16, precision="fp32"),
    checkpoint=CheckpointConfig(every_steps=50),
    eval=EvalConfig(every_steps=50, orders=("l2r",), samples=8),
    # wandb.init takes over a second; tests of wandb turn it on.
    log=LogConfig(every_steps=10, wandb=WandbConfig(mode="disabled")),
)

SMALL_RESOLVED = resolve(SMALL, vocab_size=101)

SMALL_YAML = """\
run: {name: small, folder: runs/small}
data: {train: shards/train, valid: shards/valid, seq_length: 64}
order: {policy: l2r}
model:
  layers: 4
  hidden: 32
  ffn_hidden: 64
  heads: 4
  kv_heads: 2
optim: {warmup_steps: 10, schedule: cosine}
train: {steps: 100, micro_batch: 2, global_batch: 16, precision: fp32}
checkpoint: {every_steps: 50}
eval: {every_steps: 50, orders: [l2r], samples: 8}
log: {every_steps: 10, wandb: {mode: disabled}}
"""


def bend(recipe: RecipeT, changes: dict[str, Any]) -> RecipeT:
    """The recipe with other values at `section.key` or `section`; it stays resolved if it was."""
    bent: Recipe = recipe
    if isinstance(recipe, ResolvedRecipe):  # a changed section may be given unresolved
        bent = Recipe(**{field.name: getattr(recipe, field.name) for field in fields(recipe)})
    for path, value in changes.items():
        section, _, key = path.partition(".")
        whole = replace(getattr(bent, section), **{key: value}) if key else value
        bent = replace(bent, **{section: whole})
    return cast(RecipeT, resolve(bent) if isinstance(recipe, ResolvedRecipe) else bent)
