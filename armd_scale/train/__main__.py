"""`python -m armd_scale.train RECIPE.yaml [section.key=value ...]`: trains what the recipe says."""

import argparse
from collections.abc import Sequence

from armd_scale.config.load import load_recipe
from armd_scale.errors import run_command
from armd_scale.parallel.environment import read_environment


def main() -> int:
    """Reads the command line and runs the job."""
    parser = argparse.ArgumentParser(
        prog="python -m armd_scale.train",
        description="Train an ARMD language model. One process; under torchrun or srun, many.",
        epilog="example: python -m armd_scale.train recipes/demo_cpu.yaml train.steps=100",
    )
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changed keys")
    arguments = parser.parse_args()
    return train_recipe(arguments.recipe, arguments.overrides)


def train_recipe(path: str, overrides: Sequence[str]) -> int:
    """Runs the job of a recipe file in this process's place; returns its exit status."""
    recipe = load_recipe(path, overrides)
    environment = read_environment()

    from armd_scale.train.trainer import (
        train,  # after the environment: DeepSpeed reads it on import
    )

    return train(recipe, environment)


if __name__ == "__main__":
    run_command(main)
