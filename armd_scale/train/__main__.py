"""`python -m armd_scale.train RECIPE.yaml [section.key=value ...]`: train a recipe."""

import argparse
import logging
from collections.abc import Sequence

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path_text
    from armd_scale.config.load import load_recipe
    from armd_scale.fault.stop_signal import StopRequest
    from armd_scale.log import configure, get_logger
    from armd_scale.parallel.environment import read_environment


def main() -> int:
    """Parse the command line and train; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m armd_scale.train",
        description="Train an ARMD language model: one process, or many under torchrun or srun.",
        epilog="example: python -m armd_scale.train recipes/demo_cpu.yaml train.steps=100",
    )
    parser.add_argument("recipe", type=path_text, help="recipe file (YAML)")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="keys to override"
    )
    arguments = parser.parse_args()
    return train_recipe(arguments.recipe, arguments.overrides)


def train_recipe(path: str, overrides: Sequence[str]) -> int:
    """Train a recipe file as one process of the job.

    Args:
        path: of the recipe.
        overrides: `section.key=value` items.

    Returns:
        The exit status: 0 if the run is complete, 128 + N if signal N stopped it.
    """
    recipe = load_recipe(path, overrides)
    environment = read_environment()
    prefix = "" if environment.world_size == 1 else f"[rank {environment.rank}] "
    configure(prefix=prefix, level=logging.INFO if environment.is_rank0 else logging.WARNING)
    # Imported here, because it takes seconds, in which a wrong recipe has already been reported;
    # and after read_environment, which sets the variables that DeepSpeed reads when imported.
    with exit_on_interrupt():
        from armd_scale.train.trainer import Trainer

    # Signals are obeyed from here on: one that arrives before all ranks have started ends this one;
    # one that arrives while the run is being built stops it after its first step, with a save.
    with StopRequest() as stop, Trainer.from_recipe(recipe, environment, stop=stop) as trainer:
        stopped_by = trainer.fit(stop)
        if stopped_by is None:
            return 0
        logger = get_logger("armd_scale.train")
        if trainer.saved_step == trainer.state.step:
            logger.info("stopped by signal %d; run the same command to resume", stopped_by)
        else:  # no checkpoints were wanted, or the last step was bad
            logger.warning(
                "stopped by signal %d after step %d, which was not saved (%s); the same command "
                "continues from step %d",
                stopped_by,
                trainer.state.step,
                "it was skipped" if recipe.checkpoint.every_steps else "checkpoint.every_steps=0",
                trainer.saved_step,
            )
        return 128 + stopped_by


if __name__ == "__main__":
    run_command(main)
