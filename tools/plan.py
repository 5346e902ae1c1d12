"""Estimate what a recipe costs on a number of GPUs: memory, FLOPs, communication, speed, days."""

import argparse

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path, positive_int, positive_number
    from armd_scale.plan.cli import PlanRequest, run_plan
    from armd_scale.plan.gpus import EFFICIENCY, GPUS

_EXAMPLE = """examples:
  python tools/plan.py recipes/pretrain_7b.yaml --gpus 64 --gpu-type h100
  python tools/plan.py recipes/pretrain_7b.yaml --gpus 16 --search train.global_batch=512"""


def main() -> None:
    """Print tables; exit with status 2 and one sentence if the recipe cannot run."""
    # Intermixed: overrides may come before and after options, where parse_args would refuse those
    # that follow an option.
    arguments = _parser().parse_intermixed_args()
    arguments.overrides = tuple(arguments.overrides)
    run_plan(PlanRequest(**vars(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", type=path, metavar="RECIPE.yaml", help="recipe file")
    add("overrides", nargs="*", metavar="section.key=value", help="keys to override")
    gpus = "number of GPUs (default: the fewest on which the recipe fits)"
    add("--gpus", type=positive_int, metavar="N", help=gpus)
    add("--gpu-type", choices=GPUS, default="h100", help="kind of GPU (default: h100)")
    memory = "memory of each GPU (default: that of its kind)"
    add("--gpu-memory", type=positive_number, metavar="GiB", help=memory)
    share = f"fraction of the peak FLOPs that kernels reach (default: {EFFICIENCY})"
    add("--efficiency", type=positive_number, default=EFFICIENCY, metavar="F", help=share)
    add("--search", action="store_true", help="print the five best layouts instead")
    add("--json", type=path, metavar="FILE", help="file to write the figures to")
    return parser


if __name__ == "__main__":
    run_command(main)
