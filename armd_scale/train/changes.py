"""What differs between a run and the checkpoint that it resumes from.

A resume promises the steps that an undisturbed run would have taken. A setting keeps that promise
if the steps before the checkpoint would have been the same with its present value: layouts, memory,
intervals, and a learning rate schedule that differs later only. All others are refused unless the
recipe has `checkpoint.allow_changes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.codec import to_dict
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.schema import BlendSource
from armd_scale.data.fingerprint import DataFingerprint, fingerprint
from armd_scale.errors import CheckpointError
from armd_scale.log import get_logger
from armd_scale.optim.lr_schedule import learning_rate_at

DATA_KEY = "data"
"""Key of the saved state under which the fingerprints of the training data are."""
_NUM_COMPARED_RATES = 1000
_SCHEDULE_KEYS = frozenset(
    {"train.steps", "optim.lr", "optim.min_lr", "optim.warmup_steps", "optim.schedule"}
    | {"optim.decay_steps"}
)
# Sections and keys under which the same steps are taken. `model` and `data.train` are compared
# separately. Loss guard and average change what is done with a step, not the step.
_FREE_KEYS = (
    "run.name", "run.folder", "data.train", "data.valid", "data.workers", "model", "parallel",
    "optim.zero_stage", "optim.offload", "optim.ema_decay", "train.micro_batch", "train.recompute",
    "train.loss_guard", "train.hang_timeout_seconds", "train.deterministic", "checkpoint", "eval",
    "log",
)  # fmt: skip
# Differences that nobody wants to read about: they say where and how often, not what.
_UNREPORTED_KEYS = (
    "run.name", "run.folder", "checkpoint", "eval", "log", "data.train", "model.init_from",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A setting, or the content of a dataset, that is not what it was."""

    key: str
    saved: str
    """Its value in the checkpoint, as text."""
    present: str
    breaks_curve: bool
    """Whether the steps before the checkpoint would have been others with the present value."""


def describe_data(recipe: ResolvedRecipe) -> list[dict[str, Any]]:
    """Return the fingerprints of the training data for a checkpoint, as JSON values.

    Raises:
        ShardError: a shard cannot be read.
    """
    return [asdict(fingerprint(source.prefixes)) for source in recipe.data.sources]


def check_changes(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> list[Change]:
    """Return what differs from the run that saved a checkpoint.

    Raises:
        CheckpointError: the run would not continue that one's curve, and the recipe does not allow
            it.
        ShardError: a shard cannot be read.
    """
    changes = [*_changed_settings(recipe, checkpoint), *_changed_data(recipe, checkpoint)]
    breaking = [change for change in changes if change.breaks_curve]
    if breaking and not recipe.checkpoint.allow_changes:
        differences = ", ".join(f"{c.key}: {c.saved} -> {c.present}" for c in breaking)
        raise CheckpointError(
            f"a resumed run must continue as {checkpoint.folder} was trained, and this differs "
            f"({differences}): restore it, choose another run.folder, or set "
            "checkpoint.allow_changes=true"
        )
    return changes


def log_changes(changes: Sequence[Change], checkpoint: Checkpoint) -> None:
    """Log a table of what differs from a checkpoint; nothing if nothing does."""
    if not changes:
        return
    rows = [(change.key, change.saved, change.present) for change in changes]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    logger = get_logger(__name__)
    logger.info("changed since %s was saved (setting, then, now):", checkpoint.folder)
    for row, change in zip(rows, changes, strict=True):
        cells = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        logger.info("  %s%s", cells.rstrip(), "  (another curve)" if change.breaks_curve else "")


def _changed_settings(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> Iterator[Change]:
    saved, present = dict(_flatten(checkpoint.recipe)), dict(_flatten(recipe))
    same_rates = _has_same_past_rates(recipe, checkpoint)
    for key in sorted(saved.keys() | present.keys()):
        before, now = saved.get(key), present.get(key)
        if before == now or _is_under(key, _UNREPORTED_KEYS):
            continue
        is_free = same_rates if key in _SCHEDULE_KEYS else _is_under(key, _FREE_KEYS)
        yield Change(key, str(before), str(now), not is_free)


def _changed_data(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> Iterator[Change]:
    present, saved = recipe.data.sources, checkpoint.recipe.data.sources
    if [source.weight for source in present] != [source.weight for source in saved]:
        yield Change("data.train", _format_blend(saved), _format_blend(present), True)
        return
    records = _saved_fingerprints(checkpoint)
    for index, (now, then) in enumerate(zip(present, saved, strict=True)):
        if index >= len(records):  # a checkpoint from before fingerprints were saved
            if now.prefixes != then.prefixes:
                yield Change("data.train", _format_paths(then), _format_paths(now), True)
        elif not records[index].matches(fingerprint(now.prefixes)):
            # Where the same files were moved there is no difference.
            text = f"{_format_paths(now)} (other tokens)"
            yield Change("data.train", _format_paths(then), text, True)


def _saved_fingerprints(checkpoint: Checkpoint) -> list[DataFingerprint]:
    """The fingerprints in a checkpoint; none in one that was saved without them."""
    records = checkpoint.state.get(DATA_KEY, [])
    try:
        return [DataFingerprint(record["sampled"], record["recorded"]) for record in records]
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"the training state of {checkpoint.folder} must list fingerprints under "
            f"'{DATA_KEY}' (got {records!r:.100}): use another checkpoint"
        ) from error


def _has_same_past_rates(recipe: ResolvedRecipe, checkpoint: Checkpoint) -> bool:
    """Whether the steps before the checkpoint had the learning rates that the recipe has there."""
    done = checkpoint.state["step"]
    saved = checkpoint.recipe
    steps = {done * point // _NUM_COMPARED_RATES for point in range(_NUM_COMPARED_RATES)}
    # The last step besides: a schedule that begins to differ late differs most there.
    return all(
        learning_rate_at(recipe.optim, recipe.train, step)
        == learning_rate_at(saved.optim, saved.train, step)
        for step in steps | {max(0, done - 1)}
        if step < done
    )


def _flatten(recipe: ResolvedRecipe) -> Iterator[tuple[str, Any]]:
    """The recipe's values by dotted key."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return walk(to_dict(recipe), "")


def _is_under(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def _format_blend(sources: Sequence[BlendSource]) -> str:
    return " + ".join(f"{source.weight:g} {_format_paths(source)}" for source in sources)


def _format_paths(source: BlendSource) -> str:
    first, *others = source.prefixes
    return f"{first} and {len(others)} more" if others else first
