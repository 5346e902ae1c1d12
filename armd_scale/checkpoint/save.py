"""Writes a checkpoint: weights, optimizer, training state, recipe and tokenizer in one folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from armd_scale.checkpoint.folder import begin, commit
from armd_scale.checkpoint.layout import Network, Sections, write_sections
from armd_scale.config.load import dump_recipe
from armd_scale.config.schema import Recipe
from armd_scale.errors import CheckpointError

RECIPE, STATE, TOKENIZER = "recipe.yaml", "state.json", "tokenizer"
WEIGHTS, OPTIMIZER = "weights", "optimizer"


def save_checkpoint(
    checkpoints: Path,
    *,
    step: int,
    network: Network,
    recipe: Recipe,
    state: Mapping[str, Any],
    optimizer: Sections,
    tokenizer: Path | None,
    groups: ProcessGroupCollection,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes the checkpoint of a step; all processes take part, and it exists whole or not at all.

    Args:
        checkpoints: the folder that holds a run's checkpoints.
        step: optimizer steps done.
        network: whose parameters say which tensors there are and how they are split.
        recipe: with every derived number that rebuilds the network, such as the vocabulary.
        state: what else survives a restart; JSON values.
        optimizer: sections of the optimizer's tensors; empty for a checkpoint to start others from.
        tokenizer: folder of the tokenizer, copied along; None where the data has none.
        groups: the process groups of the layout.
        weights: by parameter name; None: the network's own, which must then hold them whole.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    is_main = dist.get_rank() == 0
    # The name is a function of the step, so that every process writes into the folder of the first.
    partial = begin(checkpoints, step) if is_main else None
    shared = [partial]
    dist.broadcast_object_list(shared, src=0)
    folder = shared[0]
    assert folder is not None
    try:
        if is_main:
            _write_small_files(folder, recipe=recipe, state=state, tokenizer=tokenizer)
        dist.barrier()
        own = {"weights": weights or network.by_name()}
        for name, sections in ((WEIGHTS, own), (OPTIMIZER, optimizer)):
            if sections:
                write_sections(sections, folder / name, network=network, groups=groups)
    except (OSError, CheckpointException) as error:
        raise CheckpointError(
            f"a checkpoint must be written to {checkpoints}, and that failed ({_reason(error)}): "
            "free space there, then start again to resume from the checkpoint before"
        ) from error
    dist.barrier()
    if is_main:
        commit(folder, keep=recipe.checkpoint.keep)
    dist.barrier()
    return checkpoints / folder.name.removeprefix(".").removesuffix(".partial")


def _reason(error: BaseException) -> str:
    """Why writing failed; the writers of tensors report it by rank, wrapped several times."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def _write_small_files(
    folder: Path, *, recipe: Recipe, state: Mapping[str, Any], tokenizer: Path | None
) -> None:
    (folder / RECIPE).write_text(dump_recipe(recipe))
    (folder / STATE).write_text(json.dumps(state, indent=1))
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder / TOKENIZER)
    for name in (WEIGHTS, OPTIMIZER):
        (folder / name).mkdir()
