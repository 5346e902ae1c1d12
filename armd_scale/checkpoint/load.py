"""Opens a checkpoint, and rebuilds from it the network or the whole training state."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.save import OPTIMIZER, RECIPE, STATE, TOKENIZER, WEIGHTS
from armd_scale.checkpoint.sharded_io import Network, read_sections
from armd_scale.checkpoint.store import MANIFEST, latest_valid, list_checkpoints, verify
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.tokenizer import HF_FILE, SENTENCEPIECE_FILE
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.spec import transformer_config


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, its small files read."""

    folder: Path
    recipe: ResolvedRecipe
    state: dict[str, Any]

    @property
    def tokenizer_folder(self) -> Path | None:
        """The tokenizer that came with the training data or the folder, where there was one."""
        for folder in (self.folder / TOKENIZER, self.folder):
            if any((folder / name).is_file() for name in (HF_FILE, SENTENCEPIECE_FILE)):
                return folder
        return None


def open_checkpoint(path: Path | str, *, with_optimizer: bool = False) -> Checkpoint:
    """Opens a checkpoint folder, or the newest sound one of a run folder or its checkpoints folder.

    Args:
        path: a checkpoint, a run folder, or a folder of checkpoints.
        with_optimizer: check the optimizer's files against the manifest too, not the weights alone.

    Raises:
        CheckpointError: there is none, or the one that was named is damaged.
    """
    path = Path(path)
    needed = "" if with_optimizer else (RECIPE, STATE, TOKENIZER, WEIGHTS)
    folder = _resolve(path, needed)
    if folder is None:
        raise CheckpointError(
            f"{path} must be a checkpoint, or a folder that holds one, and holds none that is "
            "sound: give the path of a checkpoint (step_...) or of a run"
        )
    return Checkpoint(
        folder=folder,
        recipe=resolve(load_recipe(folder / RECIPE)),
        state=json.loads((folder / STATE).read_text()),
    )


def _resolve(path: Path, needed: str | tuple[str, ...]) -> Path | None:
    """The checkpoint that is meant, once what is needed of it has been read and found sound."""
    if path.name.endswith(".partial") or (path / MANIFEST).is_file():
        verify(path, inside=needed)
        return path
    for checkpoints in (path, path / "checkpoints"):
        if list_checkpoints(checkpoints):
            return latest_valid(checkpoints, prefix=needed)
    return None


def load_network(
    checkpoint: Checkpoint,
    *,
    groups: ProcessGroupCollection,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ArmdModel:
    """The network of a checkpoint, for evaluation and decoding.

    Args:
        checkpoint: from `open_checkpoint`.
        groups: the process groups of the layout to load into, which may differ from the writer's.
        dtype: of the weights.
        device: where the network lives.
    """
    recipe = checkpoint.recipe
    parallel = ParallelConfig(tensor=groups.tp.size())
    network = ArmdModel(
        recipe.model,
        transformer_config(recipe.model, parallel, dtype=dtype),
        groups=groups,
    )
    load_weights(checkpoint, network, groups=groups)
    return network.to(device).eval()


@torch.no_grad()
def load_weights(
    checkpoint: Checkpoint,
    network: Network,
    *,
    groups: ProcessGroupCollection,
    may_lack: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Copies a checkpoint's weights into the network, converting their type where it differs.

    Args:
        checkpoint: from `open_checkpoint`.
        network: what to fill.
        groups: the process groups of the network's layout.
        may_lack: which parameters the checkpoint may not have, or may have in another shape.

    Returns:
        The names of those, left as they were.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    folder = checkpoint.folder / WEIGHTS
    sections = read_sections(
        ["weights"], folder, network=network, groups=groups, allow_missing=may_lack
    )
    parameters = network.parameters_by_name()
    for name, tensor in sections["weights"].items():
        parameters[name].copy_(tensor)
    return [name for name in parameters if name not in sections["weights"]]


def load_optimizer(
    checkpoint: Checkpoint, names: list[str], *, network: Network, groups: ProcessGroupCollection
) -> dict[str, dict[str, Tensor]]:
    """The named sections of the optimizer's tensors.

    Raises:
        CheckpointError: the checkpoint has no optimizer state, or is of another model.
    """
    folder = checkpoint.folder / OPTIMIZER
    if not any(folder.iterdir()):
        raise CheckpointError(
            f"a run resumes from a checkpoint with optimizer state, and {checkpoint.folder} has "
            "none: start from its weights instead, with model.init_from"
        )
    return read_sections(names, folder, network=network, groups=groups)
