"""The things that a running job is made of, built in order from its recipe."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.load import (
    Checkpoint,
    load_optimizer,
    load_weights,
    open_checkpoint,
)
from armd_scale.checkpoint.store import list_checkpoints
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import CheckpointError
from armd_scale.fault.watchdog import Watchdog
from armd_scale.log import get_logger
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import LossSpec, TrainMicroBatch
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights
from armd_scale.optim.zero_engine import MOMENTS, OptimizerState, ZeroEngine
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.pipeline.partition import stages_of_rank
from armd_scale.parallel.pipeline.schedule import ScheduledChunk
from armd_scale.train.state import TrainState
from armd_scale.train.teacher import Teacher

QUERY_START = "query_start."
# Keys in which a run's model may differ from the one whose weights it starts from.
KEYS_FREE_WITH_INIT_FROM = frozenset(
    {"init_from", "init_std", "two_stream_layers", "query", "upper_visibility", "max_anchor_gap"}
    | {"prefix_width", "dropout"}
)


@dataclass(frozen=True)
class TrainerComponents:
    """What the loop and its periodic tasks work with."""

    recipe: ResolvedRecipe
    environment: DistributedEnv
    groups: ProcessGroupCollection
    network: ModelChunks
    engine: ZeroEngine
    stages: Sequence[ScheduledChunk]
    watchdog: Watchdog = field(default_factory=Watchdog)
    parent: Teacher | None = None

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.environment.device

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for the job."""
        return self.environment.is_rank0

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights in forward and backward."""
        return compute_dtype(self.recipe)


def compute_dtype(recipe: ResolvedRecipe) -> torch.dtype:
    """The type of weights and activations in forward and backward."""
    return torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32


def find_checkpoint(recipe: ResolvedRecipe) -> Checkpoint | None:
    """The checkpoint that a run resumes from, as `checkpoint.resume` says; None for a fresh start.

    Raises:
        CheckpointError: the checkpoint is damaged or of another model, or a fresh start would bury
            the checkpoints of an earlier run.
    """
    resume = recipe.checkpoint.resume
    checkpoints = Path(recipe.run.folder) / "checkpoints"
    if resume == "never":
        if list_checkpoints(checkpoints):
            raise CheckpointError(
                "checkpoint.resume=never needs a run.folder without checkpoints, and "
                f"{checkpoints} has some: choose another run.folder, or remove them"
            )
        return None
    if resume == "auto":
        if not list_checkpoints(checkpoints):
            return None
        resume = str(checkpoints)
    checkpoint = open_checkpoint(resume, with_optimizer=True)
    _check_same_model(recipe, checkpoint)
    return checkpoint


def latest_checkpoint_before(recipe: ResolvedRecipe, step: int) -> Checkpoint | None:
    """The newest sound checkpoint of the run that was taken before a step; None: there is none."""
    for folder in reversed(list_checkpoints(Path(recipe.run.folder) / "checkpoints")):
        try:
            checkpoint = open_checkpoint(folder, with_optimizer=True)
        except CheckpointError as error:
            get_logger(__name__).warning("%s; falling back to the previous checkpoint", error)
            continue
        if checkpoint.state["step"] < step:
            return checkpoint
    return None


def initial_checkpoint(recipe: ResolvedRecipe, resumed: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint whose weights open the run: the resumed one, else that of `model.init_from`.

    Raises:
        CheckpointError: there is no sound checkpoint at `model.init_from`, or it computes something
            else with these weights.
    """
    if resumed is not None or recipe.model.init_from is None:
        return resumed
    checkpoint = open_checkpoint(recipe.model.init_from)
    _check_same_function(recipe, checkpoint)
    return checkpoint


def _check_same_function(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> None:
    """Weights of one function are noise in another, though every shape may agree.

    What may differ says how query rows start and which layers carry content (FREE_AT_START): the
    weights of the layers mean the same under all of it.
    """
    mine, theirs = dataclasses.asdict(recipe.model), dataclasses.asdict(checkpoint.recipe.model)
    if not _has_position_table(recipe, checkpoint):
        mine["max_positions"] = theirs["max_positions"]
    for key in mine:
        if key not in KEYS_FREE_WITH_INIT_FROM and mine[key] != theirs[key]:
            raise CheckpointError(
                f"the recipe's model must compute what {checkpoint.folder} was trained to compute, "
                f"and model.{key} is {mine[key]} against {theirs[key]}: mend the recipe or choose "
                "another model.init_from"
            )


def _has_position_table(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> bool:
    """Whether a learned table of positions would go from one to the other."""
    pooled = all("prefix" in each.model.query for each in (recipe, checkpoint.recipe))
    return pooled or recipe.model.position_embedding == "learned_absolute"


def _check_same_model(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> None:
    mine, theirs = dataclasses.asdict(recipe.model), dataclasses.asdict(checkpoint.recipe.model)
    for key in mine:
        if key != "init_from" and mine[key] != theirs[key]:
            raise CheckpointError(
                f"the recipe's model must be the one in {checkpoint.folder}, and model.{key} is "
                f"{mine[key]} against {theirs[key]}: mend the recipe or choose another run.folder"
            )


def build_network(
    recipe: ResolvedRecipe,
    weights: Checkpoint | None,
    *,
    groups: ProcessGroupCollection,
    device: torch.device,
) -> ModelChunks:
    """This process's parts of the network, with a checkpoint's weights or drawn ones.

    Of a checkpoint's network the start of query rows may be another one: what it lacks is drawn.
    """
    config = transformer_config(recipe.model, recipe.parallel, pipeline_dtype=compute_dtype(recipe))
    recompute = recipe.train.recompute
    assert recompute != "auto", "what is computed again must be settled by now"
    stages = stages_of_rank(
        recipe.model, recipe.parallel, seq_length=recipe.data.seq_length, rank=groups.pp.rank()
    )
    network = ModelChunks(
        [
            ArmdModel(
                recipe.model,
                config,
                groups=groups,
                recompute=recompute,
                stage=stage,
                seed=recipe.run.seed,
            )
            for stage in stages
        ]
    )
    if weights is None:
        for part in network.models:
            init_weights(part, seed=recipe.run.seed)
    else:
        new = load_weights(
            weights, network, groups=groups, allow_missing=lambda name: name.startswith(QUERY_START)
        )
        for part in network.models:
            init_weights(part, seed=recipe.run.seed, names=new)
        if new:
            get_logger(__name__).info("not in %s, drawn: %s", weights.folder, ", ".join(new))
    return network.to(device)


def make_schedule_chunks(engine: ZeroEngine, parent: Teacher | None = None) -> list[ScheduledChunk]:
    """The network's parts as the schedule sees them, each called through the engine."""
    return make_chunks_for(engine.network, engine, parent)


def make_chunks_for(
    network: ModelChunks, forward: Callable[..., Any], parent: Teacher | None = None
) -> list[ScheduledChunk]:
    """The network's parts as the schedule sees them, from lessons.

    Args:
        network: the parts that this process holds.
        forward: the network itself, or an engine around it.
        parent: what the network is held to; it is then in one part.
    """

    def call(lesson: TrainMicroBatch, number: int) -> Tensor | tuple[Tensor, Tensor]:
        if lesson.loss_weights is None:
            return forward(lesson.batch, number)
        reference = None if parent is None else parent.reference(lesson.batch)
        return forward(lesson.batch, number, LossSpec(lesson.loss_weights, reference))

    return [
        ScheduledChunk(
            partial(call, number=number), part.set_input_tensor, network.transformer_config
        )
        for number, part in enumerate(network.models)
    ]


def load_train_state(
    checkpoint: Checkpoint, network: ModelChunks, *, with_average: bool
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
    optimizer = OptimizerState(
        num_updates=state.updates, master=sections["master"], moments=moments
    )
    return state, optimizer, sections.get("average")
