"""Submits training to Slurm through submitit, requeued until it ends, or runs it here."""

import argparse
from functools import partial
from pathlib import Path

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
from armd_scale.errors import run_command
from armd_scale.train.__main__ import train_recipe

_EXAMPLES = """examples:
  python tools/submit.py recipes/pretrain_7b.yaml --nodes 8 --slurm partition=gpu --follow
  python tools/submit.py first.yaml then.yaml         (the second starts when the first is done)
  python tools/submit.py recipes/demo_cpu.yaml --sweep optim.lr=1e-3,3e-3 --set train.steps=300
  python tools/submit.py recipes/demo_cpu.yaml --cluster local --tasks-per-node 1
  python tools/submit.py recipes/pretrain_7b.yaml --only state        (or cancel)"""


def main() -> None:
    """Submits what is asked for, or looks after what was."""
    args = vars(_parser().parse_args())
    recipes, sets, sweeps = args.pop("recipes"), args.pop("set"), args.pop("sweep")
    only, wants_log = args.pop("only"), args.pop("follow")
    works = [_work(recipe, sets, chosen) for chosen in sweep(sweeps) for recipe in recipes]
    if only is None:
        jobs = submit(works, Resources(**args), sequential=len(recipes) > 1)
    else:
        jobs = [job for work in works for job in jobs_of(work.folder)]
    for job in jobs:
        if only == "cancel":
            cancel(job)
        print(f"{job.job_id} {state(job)} {job.paths.stderr}", flush=True)
    if wants_log and jobs:
        follow(jobs[-1])


def _work(recipe: str, sets: list[str], chosen: tuple[str, ...]) -> JobSpec:
    """A run; what a sweep chose for it is part of its folder's name."""
    run = load_recipe(recipe, [*sets, *chosen]).run
    folder = "-".join([run.folder, *chosen])
    overrides = [*sets, *chosen, f"run.folder={folder}"]
    return JobSpec(partial(train_recipe, recipe, overrides), run.name, Path(folder))


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=form)
    add, default = parser.add_argument, Resources()
    add("recipes", nargs="+", metavar="RECIPE", help="recipe files, run one after another")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changed keys, of all recipes")
    add("--sweep", nargs="+", default=[], metavar="KEY=A,B", help="a run for each combination")
    add("--cluster", choices=("slurm", "local"), default=default.cluster)
    for name in ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "grace_seconds"):
        add("--" + name.replace("_", "-"), type=int, default=getattr(default, name), metavar="N")
    add("--hours", type=float, default=default.hours, help="time limit, after which it is requeued")
    add("--slurm", nargs="+", default=(), metavar="OPTION=VALUE", help="other options of sbatch")
    add("--follow", action="store_true", help="print the last job's log as it grows")
    add("--only", choices=("state", "cancel"), help="of jobs submitted before; submits nothing")
    return parser


if __name__ == "__main__":
    run_command(main)
