"""Jobs through submitit, on Slurm or on this machine: submitted, followed, cancelled."""

import itertools
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from armd_scale.cluster.requeueable import RequeueableTask
from armd_scale.errors import TrainingError

REQUEUE_COMMAND = "bash slurm/requeue.sh $? $SECONDS"
MAX_REQUEUES = 10_000


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks for, and where."""

    cluster: str = "slurm"
    """`slurm`, or `local`: processes of this machine."""
    nodes: int = 1
    tasks_per_node: int = 8
    """Processes on a node, one a GPU."""
    gpus_per_node: int = 8
    cpus_per_task: int = 8
    hours: float = 24.0
    """Time limit; a job that meets it is saved and requeued."""
    grace_seconds: int = 300
    """How long before the limit it is told: a step and a save must fit."""
    slurm: Sequence[str] = ()
    """Other options of sbatch, as `partition=gpu` or `exclusive`."""


@dataclass(frozen=True)
class JobSpec:
    """One job: what to run, and the run's folder, which takes submitit's files and logs too."""

    run: Callable[[], int]
    name: str
    folder: Path


def sweep(choices: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of `section.key=a,b,c`, as overrides: one tuple a run.

    Raises:
        TrainingError: a choice of another form.
    """
    axes = []
    for choice in choices:
        key, equals, values = choice.partition("=")
        if not equals or not all(values.split(",")):
            raise TrainingError(
                f"a sweep must be written section.key=value,value,..., got {choice}: name the key "
                "and what it shall be"
            )
        axes.append([f"{key}={value}" for value in values.split(",")])
    return list(itertools.product(*axes))


def submit(
    works: Sequence[JobSpec], resources: Resources, *, sequential: bool
) -> list[submitit.Job]:
    """Submits jobs; on this machine they run to their ends one after another.

    Args:
        works: the jobs.
        resources: of each of them.
        in_turn: each waits until the one before it has done its work.

    Raises:
        TrainingError: there is no Slurm here, or it refuses the job; a job here did not finish.
    """
    jobs: list[submitit.Job] = []
    for work in works:
        after = jobs[-1].job_id if sequential and jobs else None
        job = _submit(work, resources, after)
        jobs.append(job)
        if resources.cluster == "local":
            follow(job)
            if not job.paths.result_pickle.exists():
                raise TrainingError(
                    f"the job must do its work to the end, and ended before: see {job.paths.stderr}"
                )
    return jobs


def follow(job: submitit.Job) -> None:
    """Prints the log of a job's first process as it grows, until the job has ended."""
    shown = 0
    while True:
        is_over = state(job) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        log = job.paths.stderr
        if log.exists():
            text = log.read_text(errors="replace")
            print(text[shown:], end="", flush=True)
            shown = len(text)
        if is_over:
            return
        time.sleep(1)


def state(job: submitit.Job) -> str:
    """Where a job is: Slurm's word for it, or ENDED where Slurm no longer knows it."""
    if not isinstance(job, submitit.SlurmJob):
        return job.state
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job.job_id}", "--states=all"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "ENDED"


def cancel(job: submitit.Job) -> None:
    """Ends a job; one that has ended is left alone. It saves first."""
    subprocess.run(["scancel", job.job_id], check=False)


def jobs_of(folder: Path) -> list[submitit.SlurmJob]:
    """The jobs on Slurm that were submitted for a run, oldest first."""
    numbers = {path.name.split("_")[0] for path in _files(folder).glob("*_submitted.pkl")}
    return [submitit.SlurmJob(_files(folder), number) for number in sorted(numbers, key=int)]


def _files(folder: Path) -> Path:
    return folder / "submitit"


def _submit(work: JobSpec, resources: Resources, after: str | None) -> submitit.Job:
    try:
        return _executor(work, resources, after).submit(RequeueableTask(work.run))
    except FailedJobError as error:
        said = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"Slurm must accept the job, and answered '{said}': ask for other resources"
        ) from error


def _executor(work: JobSpec, resources: Resources, after: str | None) -> submitit.Executor:
    if resources.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
        raise TrainingError(
            "submitting to Slurm needs sbatch and srun on PATH, and they are not there: run this "
            "on a login node, or add --cluster local"
        )
    folder = _files(work.folder)
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(
        folder, cluster=resources.cluster, slurm_max_num_timeout=MAX_REQUEUES
    )
    executor.update_parameters(
        name=work.name,
        nodes=resources.nodes,
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_task=resources.cpus_per_task,
        timeout_min=round(60 * resources.hours),
    )
    if resources.cluster == "slurm":
        options = {
            name: value if equals else True
            for name, equals, value in (option.partition("=") for option in resources.slurm)
        }
        executor.update_parameters(
            slurm_signal_delay_s=resources.grace_seconds,
            slurm_teardown=[REQUEUE_COMMAND],
            slurm_srun_args=["--kill-on-bad-exit=0", "--wait=60"],
            slurm_additional_parameters={"requeue": True, **options},
            slurm_dependency=None if after is None else f"afterok:{after}",
        )
    return executor
