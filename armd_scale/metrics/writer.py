"""Where numbers about a run go: metrics.jsonl, and Weights & Biases beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from armd_scale.config.load import dump_recipe
from armd_scale.config.schema import Recipe
from armd_scale.errors import TrainingError
from armd_scale.files import atomic_write_text
from armd_scale.log import get_logger


@runtime_checkable
class MetricsWriter(Protocol):
    """Takes the numbers of a step."""

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes one object; `step` is among its keys."""
        ...

    def close(self) -> None:
        """Writes out whatever is still held."""
        ...


class JsonLines:
    """metrics.jsonl: one object a line, flushed each time.

    A disk that is full does not end training: lines wait until they can be written.

    Args:
        path: the file.
        last_step: lines of later steps are dropped: they belong to steps that a resumed run
            repeats.
    """

    def __init__(self, path: Path, *, last_step: int) -> None:
        try:
            _truncate_after_step(path, last_step)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise TrainingError(
                f"metrics must be written to {path}, and that failed ({error.strerror}): mend the "
                "folder's permissions or choose another run.folder"
            ) from error

        self._pending = b""

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line, after those that wait."""
        had_backlog = bool(self._pending)
        self._pending += json.dumps(values).encode() + b"\n"
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if not had_backlog:
                get_logger(__name__).warning(
                    "%s cannot be written (%s): its lines wait", self._file.name, error.strerror
                )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _truncate_after_step(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # the line that a killed process was writing
        if values["step"] <= last_step:
            kept.append(line)
    text = "".join(line + "\n" for line in kept)
    atomic_write_text(path, text, error_class=TrainingError)


class WandbWriter:
    """Weights & Biases; offline runs are files under the run's folder, for `wandb sync`."""

    def __init__(self, recipe: Recipe) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainingError(
                "log.wandb.mode needs the package wandb, which is not installed: "
                "pip install wandb, or set log.wandb.mode=disabled"
            ) from error
        self._run = wandb.init(
            project=recipe.log.wandb.project,
            name=recipe.run.name,
            dir=recipe.run.folder,
            mode=recipe.log.wandb.mode,
            config={"recipe": dump_recipe(recipe)},
            resume="allow",
        )
        self._step = 0

    def write(self, values: Mapping[str, Any]) -> None:
        """Logs one object at its step; an evaluation under the name of its order."""
        prefix = f"eval/{values['eval_order']}/" if "eval_order" in values else "train/"
        numbers = {prefix + k: v for k, v in values.items() if isinstance(v, int | float)}
        # A checkpoint's line comes when it is written, steps later, and steps here never go back.
        self._step = max(self._step, values["step"])
        self._run.log(numbers, step=self._step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def open_writers(recipe: Recipe, *, last_step: int) -> Sequence[MetricsWriter]:
    """The writers that a recipe asks for."""
    writers: list[MetricsWriter] = [
        JsonLines(Path(recipe.run.folder) / "metrics.jsonl", last_step=last_step)
    ]
    if recipe.log.wandb.mode != "disabled":
        writers.append(WandbWriter(recipe))
    return writers
