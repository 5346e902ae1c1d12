"""What is to be evaluated, opened: a checkpoint, or a Hugging Face folder read as one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint, load_network, open_checkpoint
from armd_scale.config.schema import ParallelConfig
from armd_scale.model.armd_model import ArmdModel


@dataclass(frozen=True)
class PretrainedModel:
    """A model whose small files are read and whose weights are not."""

    checkpoint: Checkpoint
    load: Callable[[ProcessGroupCollection, torch.dtype], ArmdModel]

    def network(self, groups: ProcessGroupCollection, device: torch.device) -> ArmdModel:
        """The whole network, in the precision it was trained in; errors as of the loaders."""
        is_half = self.checkpoint.recipe.train.precision == "bf16"
        dtype = torch.bfloat16 if is_half else torch.float32
        return self.load(groups, dtype).to(device)


def open_model(checkpoint: str | None, hf: Path | None) -> PretrainedModel:
    """Opens a checkpoint or run, or in its place a folder of an ARMD or AR model.

    Raises:
        CheckpointError: it cannot be used.
    """
    if hf is None:
        assert checkpoint is not None
        opened = open_checkpoint(checkpoint)
        return PretrainedModel(
            opened, lambda groups, dtype: load_network(opened, groups=groups, dtype=dtype)
        )
    # transformers takes seconds to import, and nothing else here needs it.
    from armd_scale.checkpoint.hf.importer import recipe_for
    from armd_scale.checkpoint.hf.source import ArmdSettings, HfCheckpoint, HfWeights

    folder = HfCheckpoint(hf, ArmdSettings())
    recipe = recipe_for(folder, hf, parallel=ParallelConfig())
    return PretrainedModel(
        Checkpoint(folder=hf, recipe=recipe, state={}),
        lambda groups, dtype: HfWeights(folder, groups).load(dtype),
    )
