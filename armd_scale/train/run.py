"""A training job from its recipe: build in order, then run."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.derive import accumulation_steps
from armd_scale.config.load import dump_recipe
from armd_scale.config.rules import check_world
from armd_scale.config.schema import Recipe
from armd_scale.data.loader import MicroBatches, Share
from armd_scale.data.samples import SampleStream
from armd_scale.errors import TrainingError
from armd_scale.log import Track, configure, get_logger
from armd_scale.model.chunks import Chunks
from armd_scale.optim.average import WeightAverage
from armd_scale.optim.zero import ZeroEngine
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.groups import process_groups
from armd_scale.parallel.liveness import watched
from armd_scale.parallel.stages import all_stages, describe, layer_costs
from armd_scale.train.inputs import (
    check_tokenizers,
    open_held_out,
    open_samples,
    tokenizer_folder,
    with_vocabulary,
)
from armd_scale.train.loop import train_loop
from armd_scale.train.metrics import MetricsWriter, open_writers
from armd_scale.train.parts import (
    Parts,
    build_network,
    find_checkpoint,
    first_weights,
    read_progress,
    scheduled,
)
from armd_scale.train.periodic import Evaluate, LogProgress, SaveCheckpoints
from armd_scale.train.signals import StopRequest
from armd_scale.train.state import TrainState


def train(recipe: Recipe, environment: Environment) -> int:
    """Trains what the recipe says, from its newest checkpoint where there is one.

    Returns:
        The exit status: 0 when the run is done, 128 + the signal that stopped it otherwise.

    Raises:
        ArmdError: the recipe, data or checkpoint cannot be used, or the loss is not finite.
    """
    check_world(recipe, environment.world_size)
    recipe = with_vocabulary(recipe)
    resumed = find_checkpoint(recipe)
    weights = first_weights(recipe, resumed)
    check_tokenizers(recipe, weights)
    samples, held_out = open_samples(recipe), open_held_out(recipe)
    prepare_folder(recipe, environment)
    with (
        StopRequest() as stop,
        process_groups(environment, recipe.parallel) as groups,
        watched(environment),
        ExitStack() as closed_at_end,
    ):
        network = build_network(recipe, weights, groups=groups, device=environment.device)
        engine, average, state = start_optimizer(recipe, network, resumed)
        stages = scheduled(engine)
        log_layout(recipe, groups)
        parts = Parts(recipe, environment, groups, network, engine, stages)
        writers = open_records(recipe, state) if environment.is_main else []
        for writer in writers:
            closed_at_end.enter_context(closing(writer))
        batches = iter(micro_batches(parts, samples, state))
        closed_at_end.enter_context(closing(batches))
        track = Track(recipe.run.name, recipe.train.steps - state.step, unit="steps")
        periodic = [
            LogProgress(parts, writers, track=closed_at_end.enter_context(track)),
            Evaluate(parts, writers, held_out),
            SaveCheckpoints(parts, state, average=average, tokenizer=tokenizer_folder(recipe)),
        ]
        stopped_by = train_loop(parts, batches, state, periodic=periodic, stop=stop)
    if stopped_by is None:
        return 0
    get_logger(__name__).info("stopped by signal %d; run the same command to resume", stopped_by)
    return 128 + stopped_by


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
