"""Build model, optimizer, data loader and callbacks of a run from its recipe."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint, load_weights
from armd_scale.config.derived import num_parameters
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.data.loader import DataParallelShare, MicroBatchLoader
from armd_scale.data.sample_stream import SampleStream
from armd_scale.errors import TrainingError
from armd_scale.log import get_logger
from armd_scale.metrics.writer import MetricsWriter
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights
from armd_scale.optim.ema import ExponentialMovingAverage
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.memory import require_memory
from armd_scale.parallel.pipeline.partition import stages_of_rank
from armd_scale.train.callbacks.checkpointer import Checkpointer
from armd_scale.train.callbacks.evaluator import Evaluator
from armd_scale.train.callbacks.progress import ProgressLogger
from armd_scale.train.changes import describe_data
from armd_scale.train.context import TrainingContext, compute_dtype
from armd_scale.train.data import EvalData
from armd_scale.train.model_files import ModelFiles
from armd_scale.train.resume import load_train_state
from armd_scale.train.state import TrainState

QUERY_START_PREFIX = "query_start."


class Callbacks(NamedTuple):
    """The callbacks of every run, in the order in which they are called."""

    progress: ProgressLogger
    evaluator: Evaluator
    checkpointer: Checkpointer


def build_model(
    recipe: ResolvedRecipe,
    checkpoint: Checkpoint | None,
    *,
    groups: ProcessGroupCollection,
    device: torch.device,
) -> ModelChunks:
    """Build the model chunks of this rank.

    Args:
        recipe: without `train.recompute: auto`.
        checkpoint: where weights come from; None: initialize them randomly. Its query start may be
            another one (`model.query`): parameters that it lacks are initialized randomly.
        groups: the process groups of the layout.
        device: where to put the chunks.

    Raises:
        TrainingError: the weights, or the micro-batches, do not fit into memory.
        CheckpointError: the checkpoint is of another model.
    """
    _require_memory(recipe, groups, device)
    # On the CPU first, whose generator draws the same weights whatever the device of the run.
    network = _build_chunks(recipe, groups)
    if checkpoint is None:
        new_names = None
    else:
        # The only parameters that a checkpoint may lack: those of another query start.
        new_names = load_weights(
            checkpoint,
            network,
            groups=groups,
            allow_missing=lambda name: name.startswith(QUERY_START_PREFIX),
        )
        if new_names:
            get_logger(__name__).info(
                "not in checkpoint %s, initialized randomly: %s",
                checkpoint.folder,
                ", ".join(new_names),
            )
    for model in network.models:
        init_weights(model, seed=recipe.run.seed, names=new_names)
    return network.to(device)


def _require_memory(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, device: torch.device
) -> None:
    """Refuse sizes that cannot fit, before minutes are spent on them."""
    num_weights = num_parameters(recipe.model, recipe.model.vocab_size)
    num_weights /= groups.tp.size() * groups.pp.size()
    require_memory(
        4 * num_weights,  # in float32; stages of a pipeline differ a little
        f"the {num_weights:.3g} weights of a process",
        advice="use a smaller model, or more parallel.tensor and parallel.pipeline",
        error_class=TrainingError,
    )
    # Whatever is recomputed, the input of a layer has a row for each position of both streams.
    num_rows = 2 * recipe.train.micro_batch * recipe.data.seq_length
    num_rows /= groups.tp.size()  # with sequence parallelism
    require_memory(
        num_rows * recipe.model.hidden * compute_dtype(recipe).itemsize,
        f"the rows of {recipe.train.micro_batch:,} samples of {recipe.data.seq_length:,} tokens",
        advice="use a smaller train.micro_batch or data.seq_length",
        device=device,
        error_class=TrainingError,
    )


def _build_chunks(recipe: ResolvedRecipe, groups: ProcessGroupCollection) -> ModelChunks:
    """The chunks with uninitialized weights, on the CPU."""
    config = transformer_config(recipe.model, recipe.parallel, pipeline_dtype=compute_dtype(recipe))
    recompute = recipe.train.recompute
    assert recompute != "auto", "resolve the recipe first"
    # Under the interleaved schedule a rank has several stages, each with a chunk of its own.
    stages = stages_of_rank(
        recipe.model, recipe.parallel, seq_length=recipe.data.seq_length, rank=groups.pp.rank()
    )
    return ModelChunks(
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


def build_optimizer(
    recipe: ResolvedRecipe, network: ModelChunks, resumed: Checkpoint | None
) -> tuple[ZeroEngine, ExponentialMovingAverage | None, TrainState]:
    """Build the optimizer, from a checkpoint if the run resumes from one.

    Args:
        recipe: the run.
        network: the model chunks of this rank, with the weights of `resumed`.
        resumed: checkpoint with optimizer state; None starts with zero moments.

    Returns:
        The engine, the averaged weights (None without `optim.ema_decay`), and the training state
        of the checkpoint, or that of a new run.

    Raises:
        CheckpointError: `resumed` has no optimizer state.
    """
    decay = recipe.optim.ema_decay
    saved = None
    if resumed is not None:
        # Before the engine exists: see `load_train_state`.
        saved = load_train_state(resumed, network, with_average=decay is not None)
    engine = ZeroEngine(
        network, recipe.optim, precision=recipe.train.precision, groups=network.groups
    )
    # Starts from the present weights, also when a resumed run newly requests an average.
    average = None if decay is None else ExponentialMovingAverage(engine.full_weights, decay)
    if resumed is None or saved is None:
        return engine, average, TrainState()
    state, optimizer, saved_average = saved
    engine.import_state(optimizer)
    if average is not None and saved_average is not None:
        average.load(saved_average)
    get_logger(__name__).info("resumed from %s", resumed.folder)
    return engine, average, state


def build_data_loader(
    recipe: ResolvedRecipe,
    samples: SampleStream,
    state: TrainState,
    *,
    groups: ProcessGroupCollection,
) -> MicroBatchLoader:
    """Build the loader of this rank's micro-batches, from the samples that are not consumed yet."""
    share = DataParallelShare(
        micro_batch=recipe.train.micro_batch,
        global_batch=recipe.train.global_batch,
        rank=groups.dp.rank(),
        size=groups.dp.size(),
    )
    return MicroBatchLoader(
        samples,
        share,
        consumed_samples=state.consumed_samples,
        first_step=state.step,
        workers=recipe.data.workers,
    )


def build_callbacks(
    context: TrainingContext,
    engine: ZeroEngine,
    average: ExponentialMovingAverage | None,
    *,
    state: TrainState,
    writers: Sequence[MetricsWriter],
    eval_data: EvalData | None,
    files: ModelFiles,
) -> Callbacks:
    """Build the callbacks of every run.

    Args:
        context: of the run.
        engine: the network with its optimizer.
        average: averaged weights to save.
        state: the state that training starts from.
        writers: receive the metrics; empty on all ranks but rank 0.
        eval_data: what to evaluate on; None: evaluate nothing.
        files: of the tokenizer and of the source model, for each checkpoint.
    """
    return Callbacks(
        ProgressLogger(context, writers),
        Evaluator(context, engine, writers, eval_data),
        Checkpointer(
            context,
            engine,
            writers,
            average=average,
            start_step=state.step,
            files=files,
            data=describe_data(context.recipe),
        ),
    )
