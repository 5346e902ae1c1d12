"""Open and load a pretrained model, whether its folder is a native or a Hugging Face one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.config import CONFIG
from armd_scale.checkpoint.hf.importer import recipe_for
from armd_scale.checkpoint.hf.source import ArmdSettings, HfCheckpoint, HfWeights
from armd_scale.checkpoint.load import Checkpoint, load_network, open_checkpoint
from armd_scale.checkpoint.store import MANIFEST
from armd_scale.config.derived import num_parameters
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe
from armd_scale.config.schema import ParallelConfig, QueryKind
from armd_scale.data.special_tokens import has_chat_template
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.memory import require_memory
from armd_scale.parallel.process_groups import current_process_groups


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A network in memory, with what is needed to feed it text."""

    network: ArmdModel
    """In evaluation mode, on the requested device."""
    recipe: ResolvedRecipe
    """Recipe of the training run; of a Hugging Face folder, its model and default settings."""
    tokenizer: Tokenizer | None
    """None if the folder has no tokenizer files."""
    path: Path
    """The folder with the weights: `.../step_00001000`, or the Hugging Face folder."""
    description: str
    """One line for people, such as `runs/demo/checkpoints/step_00001000 (step 1000)`."""

    @property
    def config(self) -> ResolvedModel:
        """The model section of the recipe."""
        return self.recipe.model

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.network.parameters()).device


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose small files are read and checked, and whose weights are not loaded yet.

    Commands open the folder first and check their options against it, because loading the weights
    of a large model takes minutes.
    """

    checkpoint: Checkpoint
    """Of a Hugging Face folder: that folder, and a recipe with default settings."""
    description: str
    load: Callable[[ProcessGroupCollection, torch.dtype], ArmdModel]
    """Load the network onto the CPU, in a given type; use `load_network`."""

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the folder; None if it has no tokenizer files.

        Raises:
            TokenizerError: the files cannot be read, or have more ids than the model.
        """
        return self.checkpoint.load_tokenizer()

    @property
    def is_chat_model(self) -> bool:
        """Whether the tokenizer has a chat template, so that the model ends its answers."""
        folder = self.checkpoint.tokenizer_folder
        return folder is not None and has_chat_template(folder)

    def load_network(
        self,
        *,
        groups: ProcessGroupCollection,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
    ) -> ArmdModel:
        """Load the network in evaluation mode; every rank of `groups` must call this.

        Args:
            groups: the process groups of the layout to load into.
            device: where the network lives.
            dtype: of the weights; None: the precision of the recipe (`train.precision`).

        Raises:
            CheckpointError: the weights are incomplete, of another model, not finite, or do not fit
                into memory.
        """
        if dtype is None:
            is_half = self.checkpoint.recipe.train.precision == "bf16"
            dtype = torch.bfloat16 if is_half else torch.float32
        self._require_memory(groups, dtype, device)
        network = self.load(groups, dtype).to(device).eval()
        for name, parameter in network.named_parameters():
            if not parameter.isfinite().all():
                raise CheckpointError(
                    f"the weights of a model must be finite, and {name} of {self.description} has "
                    "NaN or infinity: its training diverged, so use an earlier checkpoint"
                )
        return network

    def _require_memory(
        self, groups: ProcessGroupCollection, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        # Also before a network of absurd sizes is built, layer by layer.
        model = self.checkpoint.recipe.model
        count = num_parameters(model, model.vocab_size) / groups.tp.size()
        for place in {torch.device("cpu"), torch.device(device)}:  # loaded on the CPU, then moved
            require_memory(
                count * dtype.itemsize,
                f"the {count:.3g} weights of {self.description}",
                advice="use a smaller model, or a larger machine",
                device=place,
                error_class=CheckpointError,
            )


def load_model(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    groups: ProcessGroupCollection | None = None,
    query: QueryKind | None = None,
    max_positions: int | None = None,
) -> PretrainedModel:
    """Load a model from a native checkpoint or from a Hugging Face folder.

    Works in a plain Python process without any setup: if no process groups exist, those of a job of
    one process are created and kept until the process exits. Under torchrun all ranks must call it.

    Args:
        path: a checkpoint (`step_...`), a run folder or its `checkpoints` folder (the newest valid
            checkpoint is used), or a Hugging Face folder of an ARMD or of a supported AR family.
        device: where the network lives; None: this rank's GPU if there is one, else the CPU.
        dtype: of the weights; None: the precision that the model was trained in.
        groups: process groups of the layout to load into; None: the groups of this process.
        query: query initialization, for a Hugging Face folder of an AR model; None: `anchor`.
        max_positions: maximum text length, for a Hugging Face folder; None: that of its config.

    Returns:
        The network with its recipe, tokenizer and path.

    Raises:
        CheckpointError: no model at `path`, a damaged or unsupported one, or `query` or
            `max_positions` for a native checkpoint.
        TokenizerError: the tokenizer files cannot be read.
    """
    # Before the process joins a job: a wrong path should fail at once, without side effects.
    folder = open_model(path, query=query, max_positions=max_positions)
    device = read_environment().device if device is None else torch.device(device)
    groups = current_process_groups(device) if groups is None else groups
    return PretrainedModel(
        network=folder.load_network(groups=groups, device=device, dtype=dtype),
        recipe=folder.checkpoint.recipe,
        tokenizer=folder.tokenizer,
        path=folder.checkpoint.folder,
        description=folder.description,
    )


def open_model(
    path: str | Path, *, query: QueryKind | None = None, max_positions: int | None = None
) -> ModelFolder:
    """Open a folder without loading its weights; arguments and errors as of `load_model`."""
    path = Path(path)
    # A converted checkpoint keeps the source's config.json in `source/`, so a config.json at the
    # top means a Hugging Face folder.
    if (path / CONFIG).is_file() and not (path / MANIFEST).is_file():
        return _open_hf(path, ArmdSettings(query=query, max_positions=max_positions))
    checkpoint = open_checkpoint(path)
    for name, value in {"query": query, "max_positions": max_positions}.items():
        if value is not None:
            raise CheckpointError(
                f"{name} can be chosen only for a Hugging Face folder (got {value}), and "
                f"{checkpoint.folder} is a checkpoint: leave it out"
            )
    return ModelFolder(
        checkpoint,
        f"{checkpoint.folder} (step {checkpoint.state.get('step', 0)})",
        lambda groups, dtype: load_network(checkpoint, groups=groups, dtype=dtype),
    )


def _open_hf(path: Path, settings: ArmdSettings) -> ModelFolder:
    source = HfCheckpoint(path, settings)
    # Evaluation and generation take lengths, batch sizes and seeds from a recipe: make one up.
    recipe = recipe_for(source, path, parallel=ParallelConfig())
    return ModelFolder(
        Checkpoint(folder=path, recipe=recipe, state={}),
        f"{path} (Hugging Face folder)",
        lambda groups, dtype: HfWeights(source, groups).load(dtype),
    )
