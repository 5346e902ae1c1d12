"""Open a native checkpoint, and load from it the network or the optimizer state."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.foreign_folder import explain_foreign
from armd_scale.checkpoint.save import OPTIMIZER, RECIPE, SOURCE, STATE, TOKENIZER, WEIGHTS
from armd_scale.checkpoint.sharded_io import Network, read_sections
from armd_scale.checkpoint.store import MANIFEST, latest_valid, list_checkpoints, verify
from armd_scale.checkpoint.tensor_files import read_index
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.special_tokens import read_eos_ids, records_prepend_bos
from armd_scale.data.tokenizer import HF_FILE, SENTENCEPIECE_FILE, Tokenizer, load_tokenizer
from armd_scale.errors import CheckpointError, TokenizerError
from armd_scale.json_files import read_json_object
from armd_scale.log import get_logger
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.spec import transformer_config


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk whose small files are read."""

    folder: Path
    recipe: ResolvedRecipe
    state: dict[str, Any]
    """The training state that was saved; `step` is among its keys."""

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder with the tokenizer of the training data; None if the data had none."""
        # A Hugging Face folder, opened as a checkpoint, has the tokenizer's files at its top. In a
        # checkpoint of ours nothing is read there that the manifest does not list.
        is_native = (self.folder / MANIFEST).is_file()
        folders = [self.folder / TOKENIZER] if is_native else [self.folder / TOKENIZER, self.folder]
        for folder in folders:
            if any((folder / name).is_file() for name in (HF_FILE, SENTENCEPIECE_FILE)):
                return folder
        return None

    @property
    def source_folder(self) -> Path | None:
        """Folder with the config.json of the model that this one was converted from; None: none."""
        is_native = (self.folder / MANIFEST).is_file()
        folder = self.folder / SOURCE if is_native else self.folder
        return folder if (folder / "config.json").is_file() else None

    def load_tokenizer(self) -> Tokenizer | None:
        """Load the tokenizer of the model, with the ids that end its texts; None without files.

        Raises:
            TokenizerError: the files cannot be read, or have more ids than the model.
        """
        if self.tokenizer_folder is None:
            return None
        tokenizer = load_tokenizer(self.tokenizer_folder)
        has_trained = (self.folder / MANIFEST).is_file() and self.state.get("step", 0) > 0
        if has_trained and not records_prepend_bos(self.tokenizer_folder):
            # Runs of earlier versions had documents without BOS, after the end of another one.
            tokenizer = load_tokenizer(self.tokenizer_folder, add_bos=False)
            tokenizer.start_id = tokenizer.start_id if tokenizer.eod is None else tokenizer.eod
        if tokenizer.vocab_size > self.recipe.model.vocab_size:
            raise TokenizerError(
                f"the tokenizer in {self.tokenizer_folder} must have no more ids than the model "
                f"has rows, and has {tokenizer.vocab_size} for {self.recipe.model.vocab_size}: use "
                "the tokenizer that the model was trained with"
            )
        ids = None if self.source_folder is None else read_eos_ids(self.source_folder)
        if ids is not None:
            if tokenizer.eod not in ids and tokenizer.eod is not None and has_trained:
                ids += (tokenizer.eod,)  # its documents may have ended with it
            elif tokenizer.eod not in ids:
                get_logger(__name__).warning(
                    "texts end at the ids %s of the model's configuration, as in transformers, and "
                    "not at the tokenizer's EOS, which is %s",
                    ", ".join(map(str, ids)),
                    tokenizer.eod,
                )
            tokenizer.eos_ids = ids
        return tokenizer


def open_checkpoint(path: Path | str, *, with_optimizer: bool = False) -> Checkpoint:
    """Open a checkpoint, or the newest valid checkpoint of a run.

    Args:
        path: a checkpoint (`step_...`), a run folder, or a folder of checkpoints.
        with_optimizer: also verify the optimizer's files, not only those needed for the weights.

    Raises:
        CheckpointError: there is no valid checkpoint, the one that `path` names is damaged, or it
            has another format version.
    """
    path = Path(path)
    # The optimizer's files are several times as large as the weights: hash them only if needed.
    prefix = "" if with_optimizer else (RECIPE, STATE, TOKENIZER, SOURCE, WEIGHTS)
    folder = _resolve(path, prefix)
    if folder is None:
        foreign = explain_foreign(path, wants_hf=False)
        raise CheckpointError(
            f"no valid checkpoint in {path}"
            + (
                f", {foreign}"
                if foreign
                else ": give a checkpoint (step_...), a run folder or its checkpoints folder"
            )
        )
    return Checkpoint(
        folder=folder,
        recipe=resolve(load_recipe(folder / RECIPE, expand_paths=False)),
        state=read_json_object(folder / STATE, error_class=CheckpointError),
    )


def _resolve(path: Path, prefix: str | tuple[str, ...]) -> Path | None:
    """The checkpoint that `path` stands for, once its files with `prefix` are verified."""
    # A partial folder has no manifest yet, but deserves `verify`'s message about interrupted saves.
    if path.name.endswith(".partial") or (path / MANIFEST).is_file():
        verify(path, prefix=prefix)
        return path
    for checkpoints in (path, path / "checkpoints"):
        if list_checkpoints(checkpoints):
            return latest_valid(checkpoints, prefix=prefix)
    return None


def load_network(
    checkpoint: Checkpoint,
    *,
    groups: ProcessGroupCollection,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ArmdModel:
    """Build the network of a checkpoint and load its weights, for evaluation and decoding.

    Args:
        checkpoint: from `open_checkpoint`.
        groups: the process groups of the layout to load into, which may differ from the writer's.
        dtype: type of the weights in memory.
        device: where the network lives.

    Returns:
        The network, in evaluation mode.

    Raises:
        CheckpointError: the weights do not fit the recipe of the checkpoint.
    """
    # Of the layout only the tensor-parallel size shapes the network: it is loaded whole otherwise,
    # without pipeline stages, whatever layout it was trained under.
    require_tensors_of_layers(checkpoint)
    recipe = checkpoint.recipe
    parallel = ParallelConfig(tensor=groups.tp.size())
    network = ArmdModel(
        recipe.model,
        transformer_config(recipe.model, parallel, dtype=dtype),
        groups=groups,
    )
    load_weights(checkpoint, network, groups=groups)
    return network.to(device).eval()


def require_tensors_of_layers(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint has tensors for all layers, before they are built one by one.

    Raises:
        CheckpointError: its recipe has more layers than the checkpoint has tensors.
    """
    folder, layers = checkpoint.folder / WEIGHTS, checkpoint.recipe.model.layers
    num_tensors = len(read_index(folder))
    if layers > num_tensors:
        raise CheckpointError(
            f"a checkpoint must contain the tensors of all layers, and {folder} has {num_tensors} "
            f"tensors for model.layers = {layers}: use another checkpoint"
        )


@torch.no_grad()
def load_weights(
    checkpoint: Checkpoint,
    network: Network,
    *,
    groups: ProcessGroupCollection,
    allow_missing: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Copy the weights of a checkpoint into a network, converting their type if it differs.

    Args:
        checkpoint: from `open_checkpoint`.
        network: the network to fill.
        groups: the process groups of the network's layout.
        allow_missing: by name, whether a parameter may be missing from the checkpoint or have
            another shape there.

    Returns:
        The names of the parameters that were missing; they keep their values.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    folder = checkpoint.folder / WEIGHTS
    sections = read_sections(
        ["weights"], folder, network=network, groups=groups, allow_missing=allow_missing
    )
    parameters = network.parameters_by_name()
    for name, tensor in sections["weights"].items():
        parameters[name].copy_(tensor)
    return [name for name in parameters if name not in sections["weights"]]


def load_optimizer(
    checkpoint: Checkpoint, names: list[str], *, network: Network, groups: ProcessGroupCollection
) -> dict[str, dict[str, Tensor]]:
    """Read sections of the optimizer state.

    Args:
        checkpoint: from `open_checkpoint(..., with_optimizer=True)`.
        names: of the sections, such as `master`, `exp_avg`, `exp_avg_sq`.
        network: the network whose parameters the optimizer updates.
        groups: the process groups of the network's layout.

    Returns:
        For each section, this rank's part of each tensor by parameter name, on the CPU.

    Raises:
        CheckpointError: the checkpoint has no optimizer state, or is of another model.
    """
    folder = checkpoint.folder / OPTIMIZER
    if not any(folder.iterdir()):
        raise CheckpointError(
            f"a run can resume only from a checkpoint with optimizer state, and "
            f"{checkpoint.folder} has none: start from its weights instead, with model.init_from"
        )
    return read_sections(names, folder, network=network, groups=groups)
