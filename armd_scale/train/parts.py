"""The things that a running job is made of, built in order from its recipe."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.folder import committed
from armd_scale.checkpoint.load import (
    Checkpoint,
    load_optimizer,
    load_weights,
    open_checkpoint,
)
from armd_scale.config.derive import max_positions
from armd_scale.config.schema import Recipe
from armd_scale.errors import CheckpointError
from armd_scale.log import get_logger
from armd_scale.model.armd import ArmdModel
from armd_scale.model.chunks import Chunks
from armd_scale.model.init import initialise
from armd_scale.model.spec import transformer_config
from armd_scale.optim.zero import MOMENTS, OptimizerState, ZeroEngine
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.schedule import ScheduledStage
from armd_scale.parallel.stages import stages_of_rank
from armd_scale.train.state import TrainState
from armd_scale.train.watchdog import Watchdog


@dataclass(frozen=True)
class Parts:
    """What the loop and its periodic tasks work with."""

    recipe: Recipe
    environment: Environment
    groups: ProcessGroupCollection
    network: Chunks
    engine: ZeroEngine
    stages: Sequence[ScheduledStage]
    watchdog: Watchdog = field(default_factory=Watchdog)

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


def checkpoint_before(recipe: Recipe, step: int) -> Checkpoint | None:
    """The newest sound checkpoint of the run that was taken before a step; None: there is none."""
    for folder in reversed(committed(Path(recipe.run.folder) / "checkpoints")):
        try:
            checkpoint = open_checkpoint(folder, with_optimizer=True)
        except CheckpointError as error:
            get_logger(__name__).warning("%s; trying the one before it", error)
            continue
        if checkpoint.state["step"] < step:
            return checkpoint
    return None


def first_weights(recipe: Recipe, resumed: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint whose weights open the run: the resumed one, else that of `model.init_from`.

    Raises:
        CheckpointError: there is no sound checkpoint at `model.init_from`.
    """
    if resumed is not None or recipe.model.init_from is None:
        return resumed
    return open_checkpoint(recipe.model.init_from)


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
    weights: Checkpoint | None,
    *,
    groups: ProcessGroupCollection,
    device: torch.device,
) -> Chunks:
    """This process's parts of the network, with a checkpoint's weights or drawn ones."""
    config = transformer_config(recipe.model, recipe.parallel, message_dtype=compute_dtype(recipe))
    stages = stages_of_rank(
        recipe.model, recipe.parallel, seq_length=recipe.data.seq_length, rank=groups.pp.rank()
    )
    network = Chunks(
        [
            ArmdModel(
                recipe.model,
                config,
                groups=groups,
                max_positions=max_positions(recipe),
                recompute=recipe.train.recompute,
                stage=stage,
                seed=recipe.run.seed,
            )
            for stage in stages
        ]
    )
    if weights is None:
        for part in network.models:
            initialise(part, seed=recipe.run.seed)
    else:
        load_weights(weights, network, groups=groups)
    return network.to(device)


def scheduled(engine: ZeroEngine) -> list[ScheduledStage]:
    """The network's parts as the schedule sees them, each called through the engine."""
    network = engine.network
    return [
        ScheduledStage(
            lambda batch, number=number: engine(batch, number),
            part.set_input,
            network.transformer_config,
        )
        for number, part in enumerate(network.models)
    ]


def read_progress(
    checkpoint: Checkpoint, network: Chunks, *, with_average: bool
) -> tuple[TrainState, OptimizerState, dict[str, Tensor] | None]:
    """The counters, the optimizer's state and the running average of the run to go on with.

    Before the network is handed to an engine, which may leave no parameter its shape (ZeRO 3).
    A run that newly asks for an average starts it from the weights.
    """
    with_average = with_average and checkpoint.recipe.optim.ema_decay is not None
    names = ["master", *MOMENTS, *(["average"] if with_average else [])]
    sections = load_optimizer(checkpoint, names, network=network, groups=network.groups)
    state = TrainState.from_json(checkpoint.state)
    moments = {key: sections[key] for key in MOMENTS}
    optimizer = OptimizerState(steps=state.updates, master=sections["master"], moments=moments)
    return state, optimizer, sections.get("average")
