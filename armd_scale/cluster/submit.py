"""Submit, follow and cancel jobs through submitit, on Slurm or on this machine."""

import itertools
import os
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from armd_scale.cluster.requeueable import RequeueableTask
from armd_scale.errors import TrainingError
from armd_scale.files import reraise_write_errors

# Runs at the end of the batch script, as in the scripts of slurm/, whose status is then that of the
# job: jobs that follow it wait for its success. submitit itself requeues only after its signal, not
# after a lost or crashed process.
REQUEUE_COMMAND = "bash slurm/requeue.sh $? $SECONDS"
# As in slurm/env.sh: since Slurm 22.05 srun does not take over the CPUs per task of the script.
EXPORT_CPUS_COMMAND = "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}"
# submitit gives up after this many time limits. Its default of 3 would end a run of weeks.
MAX_REQUEUES = 10_000
# How Slurm describes a job that will still run or write to its log.
_ACTIVE_STATES = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of a job, and the cluster it runs on."""

    cluster: str = "slurm"
    """`slurm`, or `local`: processes on this machine."""
    nodes: int = 1
    tasks_per_node: int = 8
    """Number of processes on a node, one per GPU."""
    gpus_per_node: int = 8
    cpus_per_task: int = 8
    hours: float = 24.0
    """Time limit in hours; a job that reaches it saves a checkpoint and is requeued."""
    grace_seconds: int = 300
    """Seconds between the signal and the time limit; a step and a save must fit."""
    slurm: Sequence[str] = ()
    """Other options of sbatch, such as `partition=gpu` or `exclusive`."""


@dataclass(frozen=True)
class JobSpec:
    """One job."""

    run: Callable[[], int]
    """Does the work; see `RequeueableTask`."""
    name: str
    """Name of the job."""
    folder: Path
    """The run's folder; submitit's files and logs go to `submitit/` in it."""


def sweep(choices: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all combinations of `section.key=a,b,c`, as overrides: one tuple per run.

    Raises:
        TrainingError: a choice does not have this form.
    """
    axes = []
    for choice in choices:
        key, equals, values = choice.partition("=")
        if not equals or not all(values.split(",")):
            raise TrainingError(
                f"a sweep must be written section.key=value,value,..., got {choice}: give the key "
                "and its values"
            )
        axes.append([f"{key}={value}" for value in values.split(",")])
    return list(itertools.product(*axes))


def submit(specs: Sequence[JobSpec], resources: Resources) -> list[submitit.Job]:
    """Submit jobs that follow each other to Slurm, or run them on this machine.

    Each starts only after the one before it has succeeded.

    Args:
        specs: the jobs.
        resources: resources of each job.

    Returns:
        The submitted jobs. On this machine all of them have finished.

    Raises:
        TrainingError: Slurm is not installed here or rejects a job, or a job on this machine
        failed.
    """
    jobs: list[submitit.Job] = []
    for spec in specs:
        after = jobs[-1].job_id if jobs else None
        job = _submit(spec, resources, after)
        jobs.append(job)
        if resources.cluster == "local":
            follow(job)
            # submitit writes the result file when the task returns, and not after a SystemExit,
            # with which a task reports that it failed.
            if not job.paths.result_pickle.exists():
                raise TrainingError(f"the job failed before it finished: see {job.paths.stderr}")
    return jobs


def follow(job: submitit.Job) -> None:
    """Print the log of a job's first process as it grows, until the job has ended."""
    num_printed = 0
    while True:
        # Before the log is read: what the job wrote until its end is then printed in the last
        # round.
        has_ended = state(job) not in _ACTIVE_STATES
        log = job.paths.stderr
        if log.exists():
            text = log.read_text(errors="replace")
            print(text[num_printed:], end="", flush=True)
            num_printed = len(text)
        if has_ended:
            return
        time.sleep(1)


def state(job: submitit.Job) -> str:
    """Return the state of a job in Slurm's words; ENDED if Slurm has forgotten the job."""
    if not isinstance(job, submitit.SlurmJob):
        return job.state
    # Not SlurmJob.state: it asks sacct, which needs an accounting database that many clusters lack.
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job.job_id}", "--states=all"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "ENDED"


def cancel(job: submitit.Job) -> None:
    """Cancel a job, which saves a checkpoint first; does nothing if the job has ended."""
    subprocess.run(["scancel", job.job_id], check=False)


def jobs_of(folder: Path) -> list[submitit.SlurmJob]:
    """Return the Slurm jobs that were submitted for a run, oldest first.

    Args:
        folder: the run's folder.
    """
    # submitit names its files JOB_submitted.pkl, or JOB_0_submitted.pkl for a task of an array.
    path = _submitit_folder(folder)
    job_ids = {file.name.split("_")[0] for file in path.glob("*_submitted.pkl")}
    numbers = sorted(int(job_id) for job_id in job_ids if job_id.isdecimal())
    return [submitit.SlurmJob(path, str(number)) for number in numbers]


def _submitit_folder(folder: Path) -> Path:
    """The folder of submitit's files.

    Raises:
        TrainingError: somebody else could put files there. submitit unpickles some of them, which
            runs whatever code they hold.
    """
    path = folder / "submitit"
    if path.exists():
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise TrainingError(
                f"{path} must be yours, and nobody else may write there, because submitit runs "
                f"code from it: chmod go-w {path}, or choose another run.folder"
            )
    return path


def _create_submitit_folder(folder: Path) -> Path:
    path = _submitit_folder(folder)
    with reraise_write_errors(path, error_class=TrainingError):
        folder.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    return _submitit_folder(folder)


def _submit(spec: JobSpec, resources: Resources, after: str | None) -> submitit.Job:
    """Submit one job, to start after the job with the id `after` has succeeded."""
    try:
        return _make_executor(spec, resources, after).submit(RequeueableTask(spec.run))
    except FailedJobError as error:
        message = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"Slurm rejected the job ('{message}'): request other resources"
        ) from error


def _make_executor(spec: JobSpec, resources: Resources, after: str | None) -> submitit.Executor:
    if resources.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
        raise TrainingError(
            "submitting to Slurm needs sbatch and srun, which are not on PATH: run this on a login "
            "node, or add --cluster local"
        )
    folder = _create_submitit_folder(spec.folder)
    executor = submitit.AutoExecutor(
        folder, cluster=resources.cluster, slurm_max_num_timeout=MAX_REQUEUES
    )
    executor.update_parameters(
        name=spec.name,
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
            slurm_setup=[EXPORT_CPUS_COMMAND],
            slurm_teardown=[REQUEUE_COMMAND],
            # As in the scripts of slurm/: ranks that lose another rank log that and exit by
            # themselves; srun kills those that have not 60 s after the first exit.
            slurm_srun_args=["--kill-on-bad-exit=0", "--wait=60"],
            slurm_additional_parameters={"requeue": True, **options},
            slurm_dependency=None if after is None else f"afterok:{after}",
        )
    return executor
