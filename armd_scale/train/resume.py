"""Find the checkpoint that a run starts from, check that it fits the recipe, load its state."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from armd_scale.checkpoint.load import Checkpoint, load_optimizer, open_checkpoint
from armd_scale.checkpoint.store import MANIFEST, list_checkpoints, set_aside_after
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import CheckpointError, ShardError
from armd_scale.log import get_logger
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.zero_engine import MOMENTS, OptimizerState
from armd_scale.train.changes import DATA_KEY
from armd_scale.train.state import TrainState

# Keys in which a run's model may differ from the one whose weights it starts from: they choose how
# query rows start and which layers carry content, under all of which the layers compute the same.
KEYS_FREE_WITH_INIT_FROM = frozenset(
    {"init_from", "init_std", "two_stream_layers", "query", "upper_visibility", "max_anchor_gap"}
    | {"prefix_width", "dropout"}
)


def refuse_checkpoint_as_run_folder(recipe: ResolvedRecipe) -> None:
    """Refuse a run folder that is a checkpoint, whose files the run would overwrite.

    Raises:
        CheckpointError: it is one.
    """
    folder = Path(recipe.run.folder)
    if (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"run.folder must not be a checkpoint, and {folder} is one: choose another run.folder, "
            f"and set model.init_from={folder} to start from its weights"
        )


def find_checkpoint(recipe: ResolvedRecipe) -> Checkpoint | None:
    """Open the checkpoint that `checkpoint.resume` selects; None for a fresh start.

    Raises:
        CheckpointError: the checkpoint is damaged or has a different model, or a fresh start was
            requested in a run folder that already has checkpoints.
    """
    resume = recipe.checkpoint.resume
    checkpoints = checkpoints_folder(recipe)
    if resume == "never":
        if list_checkpoints(checkpoints):
            raise CheckpointError(
                f"checkpoint.resume=never requires a run.folder without checkpoints ({checkpoints} "
                "has some): choose another run.folder or remove them"
            )
        return None
    if resume == "auto":
        if not list_checkpoints(checkpoints):
            return None
        resume = str(checkpoints)
    checkpoint = open_checkpoint(resume, with_optimizer=True)
    _check_same_model(recipe, checkpoint)
    return checkpoint


def checkpoints_folder(recipe: ResolvedRecipe) -> Path:
    """The folder of a run's checkpoints."""
    return Path(recipe.run.folder) / "checkpoints"


def check_same_on_all_ranks(
    checkpoint: Checkpoint | None, prefixes: Sequence[str], device: torch.device
) -> None:
    """Check that all ranks have found the same checkpoint and the same shards (collective).

    Args:
        checkpoint: that this rank resumes from.
        prefixes: of all training shards, of which a pattern may find others on another machine.
        device: of the process groups.

    Raises:
        CheckpointError: ranks differ in the checkpoint; on all ranks alike.
        ShardError: ranks differ in the shards; on all ranks alike.
    """
    step = -1 if checkpoint is None else checkpoint.state["step"]
    # Their names without folders: machines may have copies in folders of their own.
    names = "\n".join(Path(prefix).name for prefix in prefixes)
    digest = int.from_bytes(hashlib.sha256(names.encode()).digest()[:6])  # fits into a tensor
    largest = torch.tensor([step, -step, digest, -digest], device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    newest, oldest, digest, lowest_digest = largest.tolist()
    oldest = -oldest
    if digest != -lowest_digest:
        raise ShardError(
            "all ranks must read the same training shards, and they found different ones for "
            "data.train: put them on a filesystem that all machines share, wait until they are "
            "complete, and rerun the same command"
        )
    if newest != oldest:
        raise CheckpointError(
            f"all ranks must resume from one checkpoint, and they found those of steps {oldest} "
            f"and {newest} (-1: none): set run.folder to a filesystem that all machines share, and "
            "rerun the same command"
        )


def load_progress(checkpoint: Checkpoint) -> TrainState:
    """Return the counters of a checkpoint.

    Raises:
        CheckpointError: its training state is of another format.
    """
    values = {key: value for key, value in checkpoint.state.items() if key != DATA_KEY}
    return TrainState.from_json(values)


def set_aside_later_checkpoints(recipe: ResolvedRecipe, resumed: Checkpoint) -> None:
    """Rename checkpoints of the run that are later than the one it continues from.

    On rank 0, once all ranks have opened their checkpoint.

    Args:
        recipe: the run.
        resumed: from `find_checkpoint`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    # With `auto` the newest sound one was opened, so later ones are damaged. A path may name an
    # older one although there are later ones: the run branches off.
    suffix = "damaged" if recipe.checkpoint.resume == "auto" else "abandoned"
    step = resumed.state["step"]
    for path in set_aside_after(checkpoints_folder(recipe), step, suffix=suffix):
        get_logger(__name__).warning(
            "the run continues from step %d: set a later checkpoint aside as %s", step, path
        )


def latest_checkpoint_before(recipe: ResolvedRecipe, step: int) -> Checkpoint | None:
    """Open the newest valid checkpoint of the run from before a step; None if there is none.

    A checkpoint of the last good step itself is not good enough: the loss of a step is that of the
    weights before it, so its own weights were never seen to give a good loss.
    """
    for folder in reversed(list_checkpoints(checkpoints_folder(recipe))):
        try:
            checkpoint = open_checkpoint(folder, with_optimizer=True)
        except CheckpointError as error:
            get_logger(__name__).warning("%s; falling back to the previous checkpoint", error)
            continue
        if checkpoint.state["step"] < step:
            return checkpoint
    return None


def initial_checkpoint(recipe: ResolvedRecipe, resumed: Checkpoint | None) -> Checkpoint | None:
    """Open the checkpoint whose weights the run starts from.

    Args:
        recipe: the run.
        resumed: from `find_checkpoint`; it takes precedence over `model.init_from`.

    Returns:
        The checkpoint, or None for randomly initialized weights.

    Raises:
        CheckpointError: there is no valid checkpoint at `model.init_from`, or the recipe's model
            computes a different function with its weights.
    """
    if resumed is not None or recipe.model.init_from is None:
        return resumed
    checkpoint = open_checkpoint(recipe.model.init_from)
    _check_same_function(recipe, checkpoint)
    return checkpoint


def load_train_state(
    checkpoint: Checkpoint, network: ModelChunks, *, with_average: bool
) -> tuple[TrainState, OptimizerState, dict[str, Tensor] | None]:
    """Load the training state, the optimizer state and the averaged weights of a checkpoint.

    Must be called before the network is given to an engine, which under ZeRO 3 leaves parameters
    without the shapes that say how the saved tensors are split.

    Args:
        checkpoint: with optimizer state.
        network: the model chunks of this rank.
        with_average: load the averaged weights (EMA) if the checkpoint has them.

    Returns:
        The three; the average is None if it was not requested or not saved.

    Raises:
        CheckpointError: the checkpoint has no optimizer state, or its format is not supported.
    """
    # A run that newly requests an average resumes from a checkpoint that has none.
    with_average = with_average and checkpoint.recipe.optim.ema_decay is not None
    names = ["master", *MOMENTS, *(["average"] if with_average else [])]
    sections = load_optimizer(checkpoint, names, network=network, groups=network.groups)
    state = load_progress(checkpoint)
    moments = {key: sections[key] for key in MOMENTS}
    # Not `state.step`: AdamW corrects its bias by the updates it has made, without skipped steps.
    optimizer = OptimizerState(
        num_updates=state.updates, master=sections["master"], moments=moments
    )
    return state, optimizer, sections.get("average")


def _check_same_function(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> None:
    """Check that the recipe's model computes what the checkpoint's model does.

    Equal shapes are not enough: with another rotary base or activation the same weights compute
    noise, without an error anywhere.
    """
    ours, saved = dataclasses.asdict(recipe.model), dataclasses.asdict(checkpoint.recipe.model)
    # Rotary positions have no parameters, so a longer text is not another function.
    if not _shares_position_table(recipe, checkpoint):
        ours["max_positions"] = saved["max_positions"]
    for key in ours:
        if key not in KEYS_FREE_WITH_INIT_FROM and ours[key] != saved[key]:
            raise CheckpointError(
                f"the recipe's model must compute the function that {checkpoint.folder} was "
                f"trained to compute (model.{key} is {ours[key]}, in the checkpoint {saved[key]}): "
                "fix the recipe or choose another model.init_from"
            )


def _shares_position_table(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> bool:
    """Whether a learned table with a row per position is copied from the checkpoint."""
    with_prefix = all("prefix" in each.model.query for each in (recipe, checkpoint.recipe))
    return with_prefix or recipe.model.position_embedding == "learned_absolute"


def _check_same_model(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> None:
    ours, saved = dataclasses.asdict(recipe.model), dataclasses.asdict(checkpoint.recipe.model)
    for key in ours:
        # A run that started from other weights may drop that key: it has its own checkpoints now.
        if key != "init_from" and ours[key] != saved[key]:
            raise CheckpointError(
                f"the recipe's model must be the model of {checkpoint.folder} (model.{key} is "
                f"{ours[key]}, in the checkpoint {saved[key]}): fix the recipe or choose another "
                "run.folder"
            )
