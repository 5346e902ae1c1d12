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
from armd_scale.cluster.record import record_start
from armd_scale.config.derive import accumulation_steps, head_dim, kv_heads
from armd_scale.config.load import dump_recipe
from armd_scale.config.rules import check_world
from armd_scale.config.schema import Recipe
from armd_scale.data.loader import MicroBatches, Share
from armd_scale.data.samples import SampleStream
from armd_scale.errors import TrainingError
from armd_scale.log import Track, configure, get_logger
from armd_scale.model.attention import causal_kernel
from armd_scale.model.chunks import Chunks
from armd_scale.optim.average import WeightAverage
from armd_scale.optim.zero import ZeroEngine
from armd_scale.parallel.environment import Environment, be_deterministic
from armd_scale.parallel.groups import process_groups
from armd_scale.parallel.liveness import watched
from armd_scale.parallel.stages import all_stages, describe, layer_costs
from armd_scale.plan.recompute import settle_recompute
from armd_scale.train.guard import RollBack, go_back
from armd_scale.train.hardware import total_memory_gib
from armd_scale.train.inputs import (
    HeldOut,
    check_tokenizers,
    open_held_out,
    open_samples,
    tokenizer_folder,
    with_vocabulary,
)
from armd_scale.train.loop import train_loop
from armd_scale.train.metrics import MetricsWriter, open_writers
from armd_scale.train.parent import Parent, load_parent, open_parent
from armd_scale.train.parts import (
    Parts,
    build_network,
    checkpoint_before,
    compute_dtype,
    find_checkpoint,
    first_weights,
    read_progress,
    scheduled,
)
from armd_scale.train.patient import PatientSaves
from armd_scale.train.periodic import Evaluate, LogProgress
from armd_scale.train.saving import SaveCheckpoints
from armd_scale.train.signals import StopRequest
from armd_scale.train.state import TrainState
from armd_scale.train.watchdog import Watchdog


def train(recipe: Recipe, environment: Environment) -> int:
    """Trains what the recipe says, from its newest checkpoint where there is one.

    Returns:
        The exit status: 0 when the run is done, 128 + the signal that stopped it otherwise.

    Raises:
        ArmdError: the recipe, data or checkpoint cannot be used, or the loss is not finite.
    """
    check_world(recipe, environment.world_size)
    recipe = settle_recompute(
        with_vocabulary(recipe),
        environment.world_size,
        memory_gib=total_memory_gib(environment.device),
    )
    resumed = find_checkpoint(recipe)
    weights = first_weights(recipe, resumed)
    parent_checkpoint = open_parent(recipe)
    for checkpoint in (weights, parent_checkpoint):
        check_tokenizers(recipe, checkpoint)
    samples, held_out = open_samples(recipe), open_held_out(recipe)
    prepare_folder(recipe, environment)
    folder, hang = Path(recipe.run.folder), recipe.train.hang_seconds
    watchdog = Watchdog(folder, rank=environment.rank, hang_seconds=hang)
    if recipe.train.deterministic:
        get_logger(__name__).info("%s", be_deterministic(environment.device))
    with (
        StopRequest() as stop,
        process_groups(environment, recipe.parallel) as groups,
        watched(environment, pulse=watchdog),
    ):
        record_start(folder, environment)
        log_layout(recipe, groups)
        log_kernels(recipe, groups, environment.device)
        parent = load_parent(recipe, parent_checkpoint, groups=groups, device=environment.device)
        job = Job(recipe, environment, groups, samples, held_out, watchdog, parent)
        stopped_by = run_to_the_end(job, stop, resumed=resumed, weights=weights)
    if stopped_by is None:
        return 0
    get_logger(__name__).info("stopped by signal %d; run the same command to resume", stopped_by)
    return 128 + stopped_by


@dataclass(frozen=True)
class Job:
    """What stays as it is when weights go back to a checkpoint."""

    recipe: Recipe
    environment: Environment
    groups: ProcessGroupCollection
    samples: SampleStream
    held_out: HeldOut | None
    watchdog: Watchdog
    parent: Parent | None


def run_to_the_end(
    job: Job, stop: StopRequest, *, resumed: Checkpoint | None, weights: Checkpoint | None
) -> int | None:
    """Trains, and goes back to a checkpoint where the guard asks for it; as `train_loop` returns.

    Going back is resuming: everything is built anew, from the checkpoint, by the same code.
    """
    go_on_at = None
    while True:
        try:
            return run_once(job, stop, resumed=resumed, weights=weights, go_on_at=go_on_at)
        except RollBack as request:
            back = request.with_traceback(None)  # its frames would keep the network and optimizer
        gc.collect()
        torch.cuda.empty_cache()
        resumed = weights = checkpoint_before(job.recipe, back.first_bad_step)
        state = None if resumed is None else TrainState.from_json(resumed.state)
        go_on_at = go_back(back, state, job.recipe.train.guard)
        get_logger(__name__).warning(
            "step %d: %s, so the weights go back to an earlier checkpoint", back.state.step, back
        )


def run_once(
    job: Job,
    stop: StopRequest,
    *,
    resumed: Checkpoint | None,
    weights: Checkpoint | None,
    go_on_at: TrainState | None,
) -> int | None:
    """Builds everything from a checkpoint or from nothing, and trains on from where it stands."""
    recipe, environment = job.recipe, job.environment
    with ExitStack() as closed_at_end:
        network = build_network(recipe, weights, groups=job.groups, device=environment.device)
        engine, average, state = start_optimizer(recipe, network, resumed)
        state = go_on_at or state
        stages = scheduled(engine, job.parent)
        parts = Parts(
            recipe, environment, job.groups, network, engine, stages, job.watchdog, job.parent
        )
        writers = open_records(recipe, state) if environment.is_main else []
        for writer in writers:
            closed_at_end.enter_context(closing(writer))
        batches = iter(micro_batches(parts, job.samples, state))
        closed_at_end.enter_context(closing(batches))
        track = Track(recipe.run.name, recipe.train.steps - state.step, unit="steps")
        tokenizer = tokenizer_folder(recipe)
        saves = SaveCheckpoints(parts, state, average=average, tokenizer=tokenizer, writers=writers)
        closed_at_end.enter_context(closing(saves))
        periodic = [
            LogProgress(parts, writers, track=closed_at_end.enter_context(track)),
            Evaluate(parts, writers, job.held_out),
            PatientSaves(saves, job.watchdog),
        ]
        return train_loop(parts, batches, state, periodic=periodic, stop=stop)


def log_layout(recipe: Recipe, groups: ProcessGroupCollection) -> None:
    """Says how layers are shared out over pipeline stages, and how long stages will wait."""
    parallel, length = recipe.parallel, recipe.data.seq_length
    if parallel.pipeline > 1:
        line = describe(
            all_stages(recipe.model, parallel, seq_length=length),
            layer_costs(recipe.model, length),
            parallel=parallel,
            micro_batches=accumulation_steps(recipe.train, groups.dp.size()),
        )
        get_logger(__name__).info("%s", line)


def log_kernels(recipe: Recipe, groups: ProcessGroupCollection, device: torch.device) -> None:
    """Says which attention kernel runs, and what is computed again for the backward pass."""
    kernel = causal_kernel(
        heads=2 * recipe.model.heads // groups.tp.size(),  # both streams are folded into them
        kv_heads=kv_heads(recipe.model) // groups.tp.size(),
        rows=recipe.data.seq_length,
        head_dim=head_dim(recipe.model),
        device=device,
        dtype=compute_dtype(recipe),
    )
    recompute = recipe.train.recompute
    get_logger(__name__).info("causal attention by %s; recomputation: %s", kernel, recompute)


def start_optimizer(
    recipe: Recipe, network: Chunks, resumed: Checkpoint | None
) -> tuple[ZeroEngine, WeightAverage | None, TrainState]:
    """The engine, the running average where one is asked for, and where the run stands."""
    decay, precision = recipe.optim.ema_decay, recipe.train.precision
    progress = None
    if resumed is not None:
        progress = read_progress(resumed, network, with_average=decay is not None)
    engine = ZeroEngine(network, recipe.optim, precision=precision, groups=network.groups)
    average = None if decay is None else WeightAverage(engine.whole_weights, decay)
    if resumed is None or progress is None:
        return engine, average, TrainState()
    state, optimizer, saved_average = progress
    engine.import_state(optimizer)
    if average is not None and saved_average is not None:
        average.load(saved_average)
    get_logger(__name__).info("resumed from %s", resumed.folder)
    return engine, average, state


def prepare_folder(recipe: Recipe, environment: Environment) -> None:
    """Makes the run's folder, with room for checkpoints, and sends the log there too.

    Raises:
        TrainingError: the folder cannot be written.
    """
    folder = Path(recipe.run.folder)
    prefix = "" if environment.world_size == 1 else f"[rank {environment.rank}] "
    configure(prefix=prefix, level=logging.INFO if environment.is_main else logging.WARNING)
    if not environment.is_main:
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


def open_records(recipe: Recipe, state: TrainState) -> Sequence[MetricsWriter]:
    """Keeps the resolved recipe in the run's folder, now that the run can begin; opens metrics."""
    (Path(recipe.run.folder) / "recipe.yaml").write_text(dump_recipe(recipe))
    return open_writers(recipe, last_step=state.step)


def micro_batches(parts: Parts, samples: SampleStream, state: TrainState) -> MicroBatches:
    """This rank's micro-batches from where the run stands."""
    train = parts.recipe.train
    share = Share(
        micro_batch=train.micro_batch,
        global_batch=train.global_batch,
        rank=parts.groups.dp.rank(),
        size=parts.groups.dp.size(),
    )
    return MicroBatches(
        samples,
        share,
        consumed_samples=state.consumed_samples,
        first_step=state.step,
        workers=parts.recipe.data.workers,
    )
