"""Submit training to Slurm through submitit, requeued until it finishes, or run it here."""

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from armd_scale.errors import exit_on_interrupt, refuse_renamed_options, run_command

with exit_on_interrupt():
    from armd_scale.arguments import natural_int, path_text, positive_int, positive_number
    from armd_scale.cluster.submit import (
        JobSpec,
        Resources,
        cancel,
        follow,
        jobs_of,
        state,
        submit,
        sweep,
    )
    from armd_scale.config.load import load_recipe
    from armd_scale.train.__main__ import train_recipe

_EXAMPLES = """examples:
  python tools/submit.py recipes/pretrain_7b.yaml --nodes 8 --slurm partition=gpu --follow
  python tools/submit.py first.yaml second.yaml           (the second starts after the first)
  python tools/submit.py recipes/demo_cpu.yaml train.steps=300 --sweep optim.lr=1e-3,3e-3
  python tools/submit.py recipes/demo_cpu.yaml --cluster local --tasks-per-node 1
  python tools/submit.py recipes/pretrain_7b.yaml --status            (or --cancel)"""

_SIZES = {
    "nodes": "nodes of a job",
    "tasks_per_node": "processes on each node, one per GPU",
    "gpus_per_node": "GPUs of each node",
    "cpus_per_task": "CPU cores of each process",
    "grace_seconds": "seconds before the time limit at which training is told to save",
}


def main() -> None:
    """Submit jobs, or show or cancel those that were submitted before."""
    args = vars(_parser().parse_args())
    arguments, sweeps, wants_log = args.pop("arguments"), args.pop("sweep"), args.pop("follow")
    wants_status, wants_cancel = args.pop("status"), args.pop("cancel")
    overrides = [argument for argument in arguments if _is_override(argument)]
    recipes = [argument for argument in arguments if not _is_override(argument)]
    # Recipes are loaded here, so that an invalid one fails now and not hours later in the queue.
    chains = [[_job(recipe, overrides, chosen) for recipe in recipes] for chosen in sweep(sweeps)]
    if wants_status or wants_cancel:
        jobs = [job for specs in chains for spec in specs for job in jobs_of(spec.folder)]
    else:
        # The recipes of one combination follow each other; combinations do not wait.
        jobs = [job for specs in chains for job in submit(specs, Resources(**args))]
    for job in jobs:
        # First, so that the printed state is read after the request to cancel.
        if wants_cancel:
            cancel(job)
        print(f"{job.job_id} {state(job)} {job.paths.stderr}", flush=True)
    if wants_log and jobs:
        follow(jobs[-1])


def _is_override(argument: str) -> bool:
    # A path is none: it has a `/`, or no `=` after the dotted name.
    return re.match(r"\w+(\.\w+)+=", argument) is not None


def _recipe_or_override(argument: str) -> str:
    return argument if _is_override(argument) else path_text(argument)


def _job(recipe: str, overrides: list[str], chosen: tuple[str, ...]) -> JobSpec:
    """Return the job of a run; the values that a sweep chose are part of its folder's name."""
    run = load_recipe(recipe, [*overrides, *chosen]).run
    folder = "-".join([run.folder, *chosen])
    arguments = [*overrides, *chosen, f"run.folder={folder}"]
    # A partial of a module-level function, because submitit pickles it.
    return JobSpec(partial(train_recipe, recipe, arguments), run.name, Path(folder))


def _kind(name: str) -> Callable[[str], int]:
    return natural_int if name in ("gpus_per_node", "grace_seconds") else positive_int


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=form)
    add, default = parser.add_argument, Resources()
    add("arguments", nargs="+", type=_recipe_or_override, metavar="RECIPE | section.key=value",
        help="recipe files, run one after another, and changed keys, for all recipes")  # fmt: skip
    add("--sweep", nargs="+", default=[], metavar="KEY=A,B",
        help="one run (or one sequence of the recipes) per combination of the values")  # fmt: skip
    add("--cluster", choices=("slurm", "local"), default=default.cluster,
        help="where to run; local: on this machine, now (default: %(default)s)")  # fmt: skip
    for name, help_text in _SIZES.items():
        add("--" + name.replace("_", "-"), type=_kind(name), default=getattr(default, name),
            metavar="N", help=f"{help_text} (default: %(default)s)")  # fmt: skip
    add("--hours", type=positive_number, default=default.hours, metavar="H",
        help="time limit; the job is then requeued (default: %(default)s)")  # fmt: skip
    add("--slurm", nargs="+", default=(), metavar="OPTION=VALUE", help="other options of sbatch")
    add("--follow", action="store_true", help="print the log of the last job as it grows")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--status", action="store_true", help="show jobs submitted before")
    instead.add_argument("--cancel", action="store_true", help="cancel jobs submitted before")
    refuse_renamed_options(
        parser, {"--only": "--status or --cancel", "--set": "section.key=value without an option"}
    )
    return parser


if __name__ == "__main__":
    run_command(main)
