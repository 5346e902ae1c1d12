"""A training job from its recipe: build in order, then run."""

import gc
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.cluster.launch_log import record_launch
from armd_scale.config.derived import accumulation_steps
from armd_scale.config.load import dump_recipe
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.rules.check import check_world
from armd_scale.config.schema import Recipe
from armd_scale.data.loader import DataParallelShare, MicroBatchLoader
from armd_scale.data.sample_stream import SampleStream
from armd_scale.errors import TrainingError
from armd_scale.fault.peer_monitor import monitor_peers
from armd_scale.fault.stop_signal import StopRequest
from armd_scale.fault.watchdog import Watchdog
from armd_scale.log import ProgressBar, configure, get_logger
from armd_scale.metrics.writer import MetricsWriter, open_writers
from armd_scale.model.attention import sdpa_backend_name
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.ema import ExponentialMovingAverage
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.determinism import enable_determinism
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.pipeline.partition import all_stages, format_partition, layer_costs
from armd_scale.parallel.process_groups import process_groups
from armd_scale.plan.recompute import resolve_recompute
from armd_scale.train.build import (
    TrainerComponents,
    build_network,
    compute_dtype,
    find_checkpoint,
    initial_checkpoint,
    latest_checkpoint_before,
    load_train_state,
    make_schedule_chunks,
)
from armd_scale.train.callbacks.base import Evaluator, ProgressLogger
from armd_scale.train.callbacks.checkpoint_retry import RetryingCheckpointer
from armd_scale.train.callbacks.checkpointer import Checkpointer
from armd_scale.train.data import (
    EvalData,
    check_tokenizers,
    open_held_out,
    open_samples,
    resolve_from_shards,
    tokenizer_folder,
)
from armd_scale.train.device_metrics import device_memory_gib
from armd_scale.train.loop import train_loop
from armd_scale.train.loss_guard import RollbackRequest, state_after_rollback
from armd_scale.train.state import TrainState
from armd_scale.train.teacher import Teacher, load_teacher, open_teacher


def train(recipe: Recipe, environment: DistributedEnv) -> int:
    """Trains what the recipe says, from its newest checkpoint where there is one.

    Returns:
        The exit status: 0 when the run is done, 128 + the signal that stopped it otherwise.

    Raises:
        ArmdError: the recipe, data or checkpoint cannot be used, or the loss is not finite.
    """
    check_world(recipe, environment.world_size)
    resolved = resolve_recompute(
        resolve_from_shards(recipe),
        environment.world_size,
        memory_gib=device_memory_gib(environment.device),
    )
    return train_resolved(resolved, environment)


def train_resolved(recipe: ResolvedRecipe, environment: DistributedEnv) -> int:
    """Train a resolved recipe; as `train` otherwise."""
    resumed = find_checkpoint(recipe)
    weights = initial_checkpoint(recipe, resumed)
    parent_checkpoint = open_teacher(recipe)
    for checkpoint in (weights, parent_checkpoint):
        check_tokenizers(recipe, checkpoint)
    samples, held_out = open_samples(recipe), open_held_out(recipe)
    prepare_folder(recipe, environment)
    folder, hang = Path(recipe.run.folder), recipe.train.hang_timeout_seconds
    watchdog = Watchdog(folder, rank=environment.rank, hang_timeout_seconds=hang)
    if recipe.train.deterministic:
        get_logger(__name__).info("%s", enable_determinism(environment.device))
    with (
        StopRequest() as stop,
        process_groups(environment, recipe.parallel) as groups,
        monitor_peers(environment, watchdog=watchdog),
    ):
        record_launch(folder, environment)
        log_layout(recipe, groups)
        log_kernels(recipe, groups, environment.device)
        parent = load_teacher(recipe, parent_checkpoint, groups=groups, device=environment.device)
        job = TrainingContext(recipe, environment, groups, samples, held_out, watchdog, parent)
        stopped_by = train_with_rollbacks(job, stop, resumed=resumed, weights=weights)
    if stopped_by is None:
        return 0
    get_logger(__name__).info("stopped by signal %d; run the same command to resume", stopped_by)
    return 128 + stopped_by


@dataclass(frozen=True)
class TrainingContext:
    """What stays as it is when weights go back to a checkpoint."""

    recipe: ResolvedRecipe
    environment: DistributedEnv
    groups: ProcessGroupCollection
    samples: SampleStream
    held_out: EvalData | None
    watchdog: Watchdog
    parent: Teacher | None


def train_with_rollbacks(
    job: TrainingContext,
    stop: StopRequest,
    *,
    resumed: Checkpoint | None,
    weights: Checkpoint | None,
) -> int | None:
    """Trains, and goes back to a checkpoint where the guard asks for it; as `train_loop` returns.

    Going back is resuming: everything is built anew, from the checkpoint, by the same code.
    """
    resume_state = None
    while True:
        try:
            return train_from(job, stop, resumed=resumed, weights=weights, go_on_at=resume_state)
        except RollbackRequest as request:
            back = request.with_traceback(None)  # its frames would keep the network and optimizer
        gc.collect()
        torch.cuda.empty_cache()
        resumed = weights = latest_checkpoint_before(job.recipe, back.last_good_step)
        state = None if resumed is None else TrainState.from_json(resumed.state)
        resume_state = state_after_rollback(back, state, job.recipe.train.loss_guard)
        get_logger(__name__).warning(
            "step %d: %s, so the weights go back to an earlier checkpoint", back.state.step, back
        )


def train_from(
    job: TrainingContext,
    stop: StopRequest,
    *,
    resumed: Checkpoint | None,
    weights: Checkpoint | None,
    go_on_at: TrainState | None,
) -> int | None:
    """Builds everything from a checkpoint or from nothing, and trains on from where it stands."""
    recipe, environment = job.recipe, job.environment
    with ExitStack() as stack:
        network = build_network(recipe, weights, groups=job.groups, device=environment.device)
        engine, average, state = build_optimizer(recipe, network, resumed)
        state = go_on_at or state
        stages = make_schedule_chunks(engine, job.parent)
        parts = TrainerComponents(
            recipe, environment, job.groups, network, engine, stages, job.watchdog, job.parent
        )
        writers = open_metrics(recipe, state) if environment.is_rank0 else []
        for writer in writers:
            stack.enter_context(closing(writer))
        batches = iter(micro_batches(parts, job.samples, state))
        stack.enter_context(closing(batches))
        track = ProgressBar(recipe.run.name, recipe.train.steps - state.step, unit="steps")
        tokenizer = tokenizer_folder(recipe)
        saves = Checkpointer(parts, state, average=average, tokenizer=tokenizer, writers=writers)
        stack.enter_context(closing(saves))
        periodic = [
            ProgressLogger(parts, writers, track=stack.enter_context(track)),
            Evaluator(parts, writers, job.held_out),
            RetryingCheckpointer(saves, job.watchdog),
        ]
        return train_loop(parts, batches, state, callbacks=periodic, stop=stop)


def log_layout(recipe: ResolvedRecipe, groups: ProcessGroupCollection) -> None:
    """Says how layers are shared out over pipeline stages, and how long stages will wait."""
    parallel, length = recipe.parallel, recipe.data.seq_length
    if parallel.pipeline > 1:
        line = format_partition(
            all_stages(recipe.model, parallel, seq_length=length),
            layer_costs(recipe.model, length),
            parallel=parallel,
            num_micro_batches=accumulation_steps(recipe.train, groups.dp.size()),
        )
        get_logger(__name__).info("%s", line)


def log_kernels(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, device: torch.device
) -> None:
    """Says which attention kernel runs, and what is computed again for the backward pass."""
    kernel = sdpa_backend_name(
        heads=2 * recipe.model.heads // groups.tp.size(),  # both streams are folded into them
        kv_heads=recipe.model.kv_heads // groups.tp.size(),
        rows=recipe.data.seq_length,
        head_dim=recipe.model.head_dim,
        device=device,
        dtype=compute_dtype(recipe),
    )
    recompute = recipe.train.recompute
    get_logger(__name__).info("causal attention by %s; recomputation: %s", kernel, recompute)


def build_optimizer(
    recipe: ResolvedRecipe, network: ModelChunks, resumed: Checkpoint | None
) -> tuple[ZeroEngine, ExponentialMovingAverage | None, TrainState]:
    """The engine, the running average where one is asked for, and where the run stands."""
    decay, precision = recipe.optim.ema_decay, recipe.train.precision
    progress = None
    if resumed is not None:
        progress = load_train_state(resumed, network, with_average=decay is not None)
    engine = ZeroEngine(network, recipe.optim, precision=precision, groups=network.groups)
    average = None if decay is None else ExponentialMovingAverage(engine.full_weights, decay)
    if resumed is None or progress is None:
        return engine, average, TrainState()
    state, optimizer, saved_average = progress
    engine.import_state(optimizer)
    if average is not None and saved_average is not None:
        average.load(saved_average)
    get_logger(__name__).info("resumed from %s", resumed.folder)
    return engine, average, state


def prepare_folder(recipe: ResolvedRecipe, environment: DistributedEnv) -> None:
    """Makes the run's folder, with room for checkpoints, and sends the log there too.

    Raises:
        TrainingError: the folder cannot be written.
    """
    folder = Path(recipe.run.folder)
    prefix = "" if environment.world_size == 1 else f"[rank {environment.rank}] "
    configure(prefix=prefix, level=logging.INFO if environment.is_rank0 else logging.WARNING)
    if not environment.is_rank0:
        return
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "log.txt")
    except OSError as error:
        raise TrainingError(
            f"run.folder must be writable, and {folder} is not ({error.strerror}): mend its "
            "permissions or choose another run.folder"
        ) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    get_logger("armd_scale").addHandler(file)
    get_logger(__name__).info(
        "starting %s on %d processes", recipe.run.name, environment.world_size
    )


def open_metrics(recipe: ResolvedRecipe, state: TrainState) -> Sequence[MetricsWriter]:
    """Keeps the resolved recipe in the run's folder, now that the run can begin; opens metrics."""
    (Path(recipe.run.folder) / "recipe.yaml").write_text(dump_recipe(recipe))
    return open_writers(recipe, last_step=state.step)


def micro_batches(
    parts: TrainerComponents, samples: SampleStream, state: TrainState
) -> MicroBatchLoader:
    """This rank's micro-batches from where the run stands."""
    train = parts.recipe.train
    share = DataParallelShare(
        micro_batch=train.micro_batch,
        global_batch=train.global_batch,
        rank=parts.groups.dp.rank(),
        size=parts.groups.dp.size(),
    )
    return MicroBatchLoader(
        samples,
        share,
        consumed_samples=state.consumed_samples,
        first_step=state.step,
        workers=parts.recipe.data.workers,
    )
