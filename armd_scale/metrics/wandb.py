"""The Weights & Biases writer."""

from collections.abc import Mapping
from typing import Any

from armd_scale.config.load import dump_recipe
from armd_scale.config.schema import Recipe
from armd_scale.errors import TrainingError


class WandbWriter:
    """Log metrics to Weights & Biases.

    Offline runs are files in the run folder, to be uploaded later by `wandb sync`.

    Raises:
        TrainingError: the package wandb is not installed.
    """

    def __init__(self, recipe: Recipe) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainingError(
                f"log.wandb.mode={recipe.log.wandb.mode} requires the package wandb, which is not "
                "installed: run `pip install wandb` or set log.wandb.mode=disabled"
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
        """Log the numbers of one object at its step; an evaluation under the name of its order."""
        prefix = f"eval/{values['eval_order']}/" if "eval_order" in values else "train/"
        numbers = {prefix + k: v for k, v in values.items() if isinstance(v, int | float)}
        # wandb drops what is logged at an earlier step than its last, and the line of a background
        # save arrives some steps late: it is logged at the newest step instead.
        self._step = max(self._step, values["step"])
        self._run.log(numbers, step=self._step)

    def close(self) -> None:
        """Finish the wandb run."""
        self._run.finish()


def open_wandb_writer(recipe: Recipe, last_step: int) -> WandbWriter | None:
    """Start the wandb run of a recipe; None if `log.wandb.mode` is `disabled`."""
    return None if recipe.log.wandb.mode == "disabled" else WandbWriter(recipe)
