"""The protocol of metric writers, and the one place that opens those of a recipe.

A new writer is a module with an opener, and a line in `_OPENERS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from armd_scale.config.schema import Recipe
from armd_scale.metrics.jsonl import open_jsonl_writer
from armd_scale.metrics.wandb import open_wandb_writer


@runtime_checkable
class MetricsWriter(Protocol):
    """Receives the metrics of a run as JSON objects."""

    def write(self, values: Mapping[str, Any]) -> None:
        """Write one object; it has the key `step`."""
        ...

    def close(self) -> None:
        """Flush and release everything."""
        ...


_OPENERS: tuple[Callable[[Recipe, int], MetricsWriter | None], ...] = (
    open_jsonl_writer,
    open_wandb_writer,
)


def open_writers(recipe: Recipe, *, last_step: int) -> list[MetricsWriter]:
    """Open the writers that a recipe configures.

    Args:
        recipe: its `run` and `log` sections say what is written where.
        last_step: optimizer steps done; metrics of later steps are repeated by this run.

    Raises:
        TrainingError: a file cannot be written, or an optional package is missing.
    """
    writers = (open_writer(recipe, last_step) for open_writer in _OPENERS)
    return [writer for writer in writers if writer is not None]
