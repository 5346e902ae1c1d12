"""What a recipe will cost on a number of GPUs: memory, operations, messages, speed, days."""

import argparse
from pathlib import Path

from armd_scale.errors import run_command
from armd_scale.plan.cli import PlanRequest, make_plan
from armd_scale.plan.gpus import EFFICIENCY, GPUS

_EXAMPLE = """examples:
  python tools/plan.py recipes/pretrain_7b.yaml --gpus 64 --gpu-type h100
  python tools/plan.py recipes/pretrain_7b.yaml --gpus 16 --search train.global_batch=512"""


def main() -> None:
    """Prints tables; exits with status 2 and a sentence where the recipe cannot run."""
    arguments = _parser().parse_intermixed_args()
    arguments.overrides = tuple(arguments.overrides)
    make_plan(PlanRequest(**vars(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE.yaml", help="recipe file")
    add("overrides", nargs="*", metavar="section.key=value", help="changed keys")
    add("--gpus", type=_count, metavar="N", help="number of GPUs (default: the fewest that do)")
    add("--gpu-type", choices=GPUS, default="h100", help="kind of GPU (default: h100)")
    add(
        "--gpu-memory", type=_above_zero, metavar="GiB", help="memory of each (default: the kind's)"
    )
    share = f"share of the peak that kernels reach (default: {EFFICIENCY})"
    add("--efficiency", type=_above_zero, default=EFFICIENCY, metavar="F", help=share)
    add("--search", action="store_true", help="print the five best layouts instead")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


if __name__ == "__main__":
    run_command(main)
