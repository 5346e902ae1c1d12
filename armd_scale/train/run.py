"""A training job from its recipe: build in order, then run."""

import logging
from contextlib import closing
from pathlib import Path

from armd_scale.config.load import dump_recipe
from armd_scale.config.rules import check_world
from armd_scale.config.schema import Recipe
from armd_scale.data.loader import MicroBatches, Share
from armd_scale.data.samples import open_stream
from armd_scale.errors import TrainingError
from armd_scale.log import Track, configure, get_logger
from armd_scale.optim.average import WeightAverage
from armd_scale.optim.zero import ZeroEngine
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.groups import process_groups
from armd_scale.train.loop import train_loop
from armd_scale.train.metrics import open_writers
from armd_scale.train.parts import (
    Parts,
    build_network,
    find_checkpoint,
    restore,
    scheduled,
    tokenizer_folder,
    with_vocabulary,
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
    checkpoint = find_checkpoint(recipe)
    prepare_folder(recipe, environment)
    with StopRequest() as stop, process_groups(environment, recipe.parallel) as groups:
        network = build_network(recipe, checkpoint, groups=groups, device=environment.device)
        engine = ZeroEngine(network, recipe.optim, precision=recipe.train.precision, groups=groups)
        decay = recipe.optim.ema_decay
        average = None if decay is None else WeightAverage(engine.parameters, decay)
        state = TrainState() if checkpoint is None else restore(checkpoint, engine, average)
        stages = scheduled(network, engine)
        parts = Parts(recipe, environment, groups, network, engine, stages)
        batches = micro_batches(parts, state)
        writers = open_writers(recipe, last_step=state.step) if environment.is_main else []
        with (
            Track(recipe.run.name, recipe.train.steps - state.step, unit="steps") as track,
            closing(iter(batches)) as batches_left,
        ):
            periodic = [
                LogProgress(parts, writers, state, track=track),
                Evaluate(parts, writers),
                SaveCheckpoints(parts, average=average, tokenizer=tokenizer_folder(recipe)),
            ]
            stopped_by = train_loop(parts, batches_left, state, periodic=periodic, stop=stop)
        for writer in writers:
            writer.close()
    if stopped_by is None:
        return 0
    get_logger(__name__).info("stopped by signal %d; run the same command to resume", stopped_by)
    return 128 + stopped_by


def prepare_folder(recipe: Recipe, environment: Environment) -> None:
    """Makes the run's folder, keeps the resolved recipe in it and sends the log there too.

    Raises:
        TrainingError: the folder cannot be written.
    """
    folder = Path(recipe.run.folder)
    prefix = "" if environment.world_size == 1 else f"[rank {environment.rank}] "
    configure(prefix=prefix, level=logging.INFO if environment.is_main else logging.WARNING)
    if not environment.is_main:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        file = logging.FileHandler(folder / "log.txt")
    except OSError as error:
        raise TrainingError(
            f"run.folder must be writable, and {folder} is not ({error.strerror}): mend its "
            "permissions or choose another run.folder"
        ) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    get_logger("armd_scale").addHandler(file)


def micro_batches(parts: Parts, state: TrainState) -> MicroBatches:
    """This rank's micro-batches from where the run stands."""
    recipe = parts.recipe
    stream = open_stream(
        recipe.data,
        order=recipe.order,
        seed=recipe.run.seed,
        vocab_size=recipe.model.vocab_size,
    )
    share = Share(
        micro_batch=recipe.train.micro_batch,
        global_batch=recipe.train.global_batch,
        rank=parts.groups.dp.rank(),
        size=parts.groups.dp.size(),
    )
    return MicroBatches(
        stream,
        share,
        consumed_samples=state.consumed_samples,
        first_step=state.step,
        workers=recipe.data.workers,
    )
