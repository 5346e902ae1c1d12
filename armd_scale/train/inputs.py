"""What a run reads, resolved, opened and checked before it writes anything."""

from typing import NamedTuple

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.rules.check import check_world
from armd_scale.config.schema import Recipe
from armd_scale.data.sample_stream import SampleStream
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.plan.recompute import resolve_recompute
from armd_scale.train.changes import Change, check_changes
from armd_scale.train.data import (
    EvalData,
    check_document_starts,
    check_tokenizers,
    open_eval_data,
    open_samples,
    resolve_from_shards,
)
from armd_scale.train.device_metrics import device_memory_gib
from armd_scale.train.resume import find_checkpoint, initial_checkpoint
from armd_scale.train.teacher import open_teacher


class RunInputs(NamedTuple):
    """The checkpoints and the data of a run."""

    resumed: Checkpoint | None
    """The checkpoint to resume from."""
    weights: Checkpoint | None
    """The checkpoint whose weights the run starts from; `resumed` if there is one."""
    teacher: Checkpoint | None
    samples: SampleStream
    eval_data: EvalData | None
    changes: list[Change]
    """What differs from the run that saved `resumed`."""


def resolve_recipe(recipe: Recipe, environment: DistributedEnv) -> ResolvedRecipe:
    """Fill in what the recipe leaves to the data and to the machine.

    Raises:
        RecipeError: the recipe does not fit the number of processes.
        ShardError: a training shard does not exist.
        TokenizerError: a tokenizer of the data has more tokens than the model.
    """
    check_world(recipe, environment.world_size)
    return resolve_recompute(
        resolve_from_shards(recipe),
        environment.world_size,
        memory_gib=device_memory_gib(environment.device),
    )


def open_inputs(recipe: ResolvedRecipe) -> RunInputs:
    """Open checkpoints and data, and check that they fit the recipe and each other.

    Raises:
        CheckpointError: a checkpoint is damaged or does not fit the recipe, or settings have
            changed since it was saved.
        ShardError: a shard is missing, damaged or shorter than one window.
        TokenizerError: two tokenizers differ.
        OrderError: an order of `eval.orders` does not exist.
    """
    resumed = find_checkpoint(recipe)
    weights, teacher = initial_checkpoint(recipe, resumed), open_teacher(recipe)
    check_document_starts(recipe)
    for checkpoint in (weights, teacher):
        check_tokenizers(recipe, checkpoint)
    samples, eval_data = open_samples(recipe), open_eval_data(recipe)
    changes = [] if resumed is None else check_changes(recipe, resumed)
    return RunInputs(resumed, weights, teacher, samples, eval_data, changes)
