"""The things that a running job is made of, built in order from its recipe."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.folder import committed
from armd_scale.checkpoint.load import (
    Checkpoint,
    load_optimizer,
    load_weights,
    open_checkpoint,
)
from armd_scale.config.derive import max_positions
from armd_scale.config.schema import Recipe
from armd_scale.data.manifest import Manifest, load_manifest
from armd_scale.errors import CheckpointError, RecipeError, TokenizerError
from armd_scale.log import get_logger
from armd_scale.model.chunks import Chunks
from armd_scale.model.init import initialise
from armd_scale.model.spec import transformer_config
from armd_scale.optim.average import WeightAverage
from armd_scale.optim.zero import MOMENTS, OptimizerState, ZeroEngine
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.schedule import ScheduledStage
from armd_scale.parallel.stages import stages_of_rank
from armd_scale.train.state import TrainState


@dataclass(frozen=True)
class Parts:
    """What the loop and its periodic tasks work with."""

    recipe: Recipe
    environment: Environment
    groups: ProcessGroupCollection
    network: Chunks
    engine: ZeroEngine
    stages: Sequence[ScheduledStage]

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.environment.device

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for the job."""
        return self.environment.is_main

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights in forward and backward."""
        return compute_dtype(self.recipe)


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """The type of weights and activations in forward and backward."""
    return torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32


def with_vocabulary(recipe: Recipe) -> Recipe:
    """The recipe with `model.vocab_size` filled in from the training shards.

    Raises:
        RecipeError: neither the recipe nor a manifest says how large the vocabulary is.
        TokenizerError: sources of different tokenizers, or one with more tokens than the model has.
    """
    manifests = {path: load_manifest(path) for path in training_prefixes(recipe)}
    known = {path: manifest for path, manifest in manifests.items() if manifest is not None}
    prints = {manifest.tokenizer.fingerprint for manifest in known.values()}
    if len(prints) > 1:
        raise TokenizerError(
            f"all of data.train must come from one tokenizer, got {len(prints)} for "
            f"{', '.join(known)}: preprocess them with the same --tokenizer"
        )
    largest = max((manifest.vocab_size for manifest in known.values()), default=None)
    given = recipe.model.vocab_size
    if given is None and largest is None:
        raise RecipeError(
            "model.vocab_size must be given where data.train has no manifest, and "
            f"{recipe.data.train}.json does not exist: set it to the tokenizer's number of tokens"
        )
    if given is not None and largest is not None and largest > given:
        raise TokenizerError(
            f"the tokenizer of {', '.join(known)} must fit model.vocab_size={given}, and has "
            f"{largest} tokens: preprocess with the model's tokenizer or raise model.vocab_size"
        )
    model = dataclasses.replace(recipe.model, vocab_size=given or largest)
    return dataclasses.replace(recipe, model=model)


def training_prefixes(recipe: Recipe) -> list[str]:
    """Prefixes of all training shards."""
    train = recipe.data.train
    return [train] if isinstance(train, str) else [part.path for part in train]


def tokenizer_folder(recipe: Recipe) -> Path | None:
    """The tokenizer of the training shards, where their manifest names one that exists."""
    prefix = training_prefixes(recipe)[0]
    manifest: Manifest | None = load_manifest(prefix)
    folder = None if manifest is None else manifest.tokenizer_folder(prefix)
    return folder if folder is not None and folder.is_dir() else None


def find_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """The checkpoint that a run resumes from, as `checkpoint.resume` says; None for a fresh start.

    Raises:
        CheckpointError: the checkpoint is damaged or of another model, or a fresh start would bury
            the checkpoints of an earlier run.
    """
    resume = recipe.checkpoint.resume
    checkpoints = Path(recipe.run.folder) / "checkpoints"
    if resume == "never":
        if committed(checkpoints):
            raise CheckpointError(
                "checkpoint.resume=never needs a run.folder without checkpoints, and "
                f"{checkpoints} has some: choose another run.folder, or remove them"
            )
        return None
    if resume == "auto":
        if not committed(checkpoints):
            return None
        resume = str(checkpoints)
    checkpoint = open_checkpoint(resume, with_optimizer=True)
    _check_same_model(recipe, checkpoint)
    return checkpoint


def _check_same_model(recipe: Recipe, checkpoint: Checkpoint) -> None:
    mine, theirs = dataclasses.asdict(recipe.model), dataclasses.asdict(checkpoint.recipe.model)
    for key in mine:
        if key != "init_from" and mine[key] != theirs[key]:
            raise CheckpointError(
                f"the recipe's model must be the one in {checkpoint.folder}, and model.{key} is "
                f"{mine[key]} against {theirs[key]}: mend the recipe or choose another run.folder"
            )


def build_network(
    recipe: Recipe,
    checkpoint: Checkpoint | None,
    *,
    groups: ProcessGroupCollection,
    device: torch.device,
) -> Chunks:
    """This process's parts of the network, resumed, with `model.init_from`'s weights, or drawn."""
    parts = stages_of_rank(
        recipe.model,
        recipe.parallel,
        seq_length=recipe.data.seq_length,
        rank=groups.pp.rank(),
    )
    network = Chunks(
        parts,
        recipe.model,
        transformer_config(recipe.model, recipe.parallel, message_dtype=compute_dtype(recipe)),
        groups=groups,
        max_positions=max_positions(recipe),
        recompute=recipe.train.recompute == "full",
    )
    if checkpoint is None and recipe.model.init_from is not None:
        checkpoint = open_checkpoint(recipe.model.init_from)
    if checkpoint is None:
        for part in network.models:
            initialise(part, seed=recipe.run.seed)
    else:
        load_weights(checkpoint, network.by_name(), groups=groups)
    return network.to(device)


def scheduled(network: Chunks, engine: ZeroEngine) -> list[ScheduledStage]:
    """The network's parts as the schedule sees them, each called through the engine."""
    return [
        ScheduledStage(
            lambda batch, number=number: engine(batch, number),
            part.set_input,
            network.transformer_config,
        )
        for number, part in enumerate(network.models)
    ]


def restore(
    checkpoint: Checkpoint, engine: ZeroEngine, average: WeightAverage | None
) -> TrainState:
    """Continues the optimizer, the running average and the counters from a checkpoint."""
    names = ["master", *MOMENTS] + ([] if average is None else ["average"])
    groups = engine.network.groups
    sections = load_optimizer(checkpoint, names, parameters=engine.parameters, groups=groups)
    state = TrainState.from_json(checkpoint.state)
    engine.import_state(
        OptimizerState(
            steps=state.step,
            master=sections["master"],
            moments={key: sections[key] for key in MOMENTS},
        )
    )
    if average is not None:
        average.load(sections["average"])
    get_logger(__name__).info("resumed from %s", checkpoint.folder)
    return state
