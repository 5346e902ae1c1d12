"""The run folder, and what a run logs about itself before its first step."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path

from armd_scale.config.derived import accumulation_steps
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import TrainingError
from armd_scale.fault.run_lock import RunLock
from armd_scale.log import get_logger
from armd_scale.metrics.events import EventLog
from armd_scale.model.attention import sdpa_backend_name
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.pipeline.partition import all_stages, format_partition, layer_costs
from armd_scale.train.context import TrainingContext

_PACKAGE = "armd_scale"


@contextmanager
def locked_run_folder(
    recipe: ResolvedRecipe, environment: DistributedEnv
) -> Iterator[RunLock | None]:
    """Create the run folder and lock it for this job, on rank 0; yield the lock there.

    A folder that is still empty at the end is removed again, with the parents that were created.

    Raises:
        TrainingError: the folder cannot be written, or another job uses it.
    """
    if not environment.is_rank0:
        yield None
        return
    folder = Path(recipe.run.folder)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _explained_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = RunLock(folder)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        with suppress(OSError):  # not empty: the run has begun
            for path in created:
                path.rmdir()


@contextmanager
def run_logs(recipe: ResolvedRecipe, environment: DistributedEnv) -> Iterator[EventLog]:
    """Open log.txt and events.jsonl of the run folder, on rank 0; yield the event log.

    Every log line of this package goes to log.txt until the block ends.

    Raises:
        TrainingError: the folder cannot be written.
    """
    if not environment.is_rank0:
        yield EventLog()
        return
    folder = Path(recipe.run.folder)
    with _explained_errors(folder):
        (folder / "checkpoints").mkdir(exist_ok=True)
        # One that begins a new file if this one is removed or renamed during the run.
        handler = WatchedFileHandler(folder / "log.txt", encoding="utf-8", errors="replace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = get_logger(_PACKAGE)
    if logger.level == logging.NOTSET:  # used as a library, whose caller has not configured it
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    events = EventLog(folder)
    try:
        yield events
    finally:
        events.close()
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _explained_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainingError(
            f"run.folder must be writable ({folder}: {reason}): fix its permissions or choose "
            "another run.folder"
        ) from error


def log_setup(context: TrainingContext) -> None:
    """Log the pipeline partition with its bubble, the attention kernel and the recomputation."""
    recipe, groups = context.recipe, context.groups
    logger = get_logger(__name__)
    if recipe.parallel.pipeline > 1:
        line = format_partition(
            all_stages(recipe.model, recipe.parallel, seq_length=recipe.data.seq_length),
            layer_costs(recipe.model, recipe.data.seq_length),
            parallel=recipe.parallel,
            num_micro_batches=accumulation_steps(recipe.train, groups.dp.size()),
        )
        logger.info("%s", line)
    kernel = sdpa_backend_name(
        heads=2 * recipe.model.heads // groups.tp.size(),  # both streams are folded into the heads
        kv_heads=recipe.model.kv_heads // groups.tp.size(),
        rows=recipe.data.seq_length,
        head_dim=recipe.model.head_dim,
        device=context.device,
        dtype=context.dtype,
    )
    logger.info("causal attention by %s; recomputation: %s", kernel, recipe.train.recompute)
