"""Checkpoints of small untrained networks."""

from pathlib import Path

from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.resolve import ResolvedRecipe
from tests.support.networks import LLAMA, build


def save_network(recipe: ResolvedRecipe, groups: ProcessGroupCollection, *, step: int = 5) -> Path:
    """Save a checkpoint of `LLAMA` in the recipe's run folder, without optimizer state."""
    return CheckpointSave(
        Path(recipe.run.folder) / "checkpoints", step=step, network=build(LLAMA, groups),
        recipe=recipe, state={"step": step}, optimizer={}, tokenizer={},
    ).wait()  # fmt: skip
