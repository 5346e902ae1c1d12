"""Jobs through submitit, on this machine and on a real Slurm: submit, preempt, resume, cancel."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.cluster.submit import JobSpec, Resources, jobs_of, submit, sweep
from armd_scale.config.schema import Recipe
from armd_scale.errors import TrainingError
from tests.support.cli import ROOT, metrics, tiny_recipe, train, write_recipe, write_text
from tests.support.slurm import Cluster, cluster, missing, wait_for

pytestmark = pytest.mark.slow(minutes=2)

SUBMIT = (sys.executable, str(ROOT / "tools/submit.py"))
SMALL = ("--tasks-per-node", "1", "--gpus-per-node", "0", "--cpus-per-task", "1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = missing()
    if reason is not None:
        assert "CI" not in os.environ, reason
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def last_step(recipe: Recipe) -> int:
    path = Path(recipe.run.folder) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def log_of(recipe: Recipe) -> str:
    path = Path(recipe.run.folder) / "log.txt"
    return path.read_text() if path.exists() else ""


def assert_equals_uninterrupted_run(recipe: Recipe, text: str, folder: Path) -> None:
    """Check that the metrics equal those of a run without interruptions."""
    folder.mkdir()
    steps = open_checkpoint(recipe.run.folder).state["step"]
    whole = tiny_recipe(folder, text, train__steps=steps, checkpoint__every_steps=0)
    assert metrics(recipe) == train(whole, folder)


def test_sweeps_give_all_combinations() -> None:
    assert sweep([]) == [()]
    assert sweep(["optim.lr=1e-4,3e-4", "run.seed=1,2"]) == [
        ("optim.lr=1e-4", "run.seed=1"), ("optim.lr=1e-4", "run.seed=2"),
        ("optim.lr=3e-4", "run.seed=1"), ("optim.lr=3e-4", "run.seed=2"),
    ]  # fmt: skip
    for wrong in ("optim.lr", "optim.lr=", "optim.lr=1,,2"):
        with pytest.raises(TrainingError, match=f"section.key=value,value,..., got {wrong}:"):
            sweep([wrong])


def test_a_local_job_is_preempted_and_resumes(tmp_path: Path) -> None:
    text = write_text(tmp_path / "pair")
    recipe = tiny_recipe(tmp_path, text, train__steps=100_000, checkpoint__every_steps=0x7FFF)
    file = write_recipe(recipe, tmp_path / "recipe.yaml")
    command = [*SUBMIT, str(file), "--cluster", "local", *SMALL]
    tool = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: last_step(recipe) > 20, seconds=180)
        task = next(
            process
            for process in psutil.Process(tool.pid).children(recursive=True)
            if "submitit.core._submit" in process.cmdline()
        )
        task.send_signal(signal.SIGUSR2)
        wait_for(lambda: "resumed from" in log_of(recipe), seconds=180)
        stopped = last_step(recipe)
        wait_for(lambda: last_step(recipe) > stopped + 20)
    finally:
        for process in psutil.Process(tool.pid).children(recursive=True):
            if "submitit.core._submit" in process.cmdline():
                process.send_signal(signal.SIGTERM)
        output, _ = tool.communicate(timeout=60)
    assert "stopped by signal 12" in output
    assert_equals_uninterrupted_run(recipe, text, tmp_path / "whole")


def test_a_job_on_slurm_is_preempted_and_resumes(slurm: Cluster, tmp_path: Path) -> None:
    text = write_text(tmp_path / "pair")
    recipe = tiny_recipe(tmp_path, text, train__steps=100_000, checkpoint__every_steps=0x7FFF)
    next_recipe = tiny_recipe(tmp_path, text, run__folder=str(tmp_path / "next"))
    files = [
        write_recipe(job_recipe, tmp_path / f"{i}.yaml")
        for i, job_recipe in enumerate((recipe, next_recipe))
    ]

    def tool(*arguments: object) -> list[list[str]]:
        words = [str(argument) for argument in arguments]
        return [line.split() for line in slurm.call(*SUBMIT, *words, folder=ROOT).splitlines()]

    limits = ("--slurm", "mem=0")
    (first, *_), (second, state, _) = tool(*files, *SMALL, *limits)
    assert state == "PENDING"
    assert f"afterok:{first}" in slurm.job(second)["Dependency"]
    wait_for(lambda: last_step(recipe) > 20, seconds=180)
    slurm.call("scancel", "--signal=USR2", first)
    wait_for(lambda: log_of(recipe).count("resumed from") == 1, seconds=180)
    assert slurm.job(first)["Restarts"] == "1"
    assert tool(files[0], "--status")[0][:2] == [first, "RUNNING"]
    stopped = last_step(recipe)
    wait_for(lambda: last_step(recipe) > stopped + 20)
    tool(files[0], "--cancel")
    assert slurm.wait_for_end(first)["JobState"] == "CANCELLED"
    assert_equals_uninterrupted_run(recipe, text, tmp_path / "whole")


def test_a_rejected_job_is_an_error(slurm: Cluster, tmp_path: Path) -> None:
    text = write_text(tmp_path / "pair")
    file = write_recipe(tiny_recipe(tmp_path, text), tmp_path / "recipe.yaml")
    command = [*SUBMIT, str(file), *SMALL, "--slurm", "partition=none"]
    done = subprocess.run(command, env=slurm.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: Slurm rejected the job ('sbatch: error: invalid part" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_slurm_is_an_error(tmp_path: Path) -> None:
    text = write_text(tmp_path / "pair")
    file = write_recipe(tiny_recipe(tmp_path, text), tmp_path / "recipe.yaml")
    environment = {**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*SUBMIT, str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs sbatch and srun, which are not on PATH" in done.stderr


def test_keys_follow_the_recipes_and_former_options_are_refused(tmp_path: Path) -> None:
    text = write_text(tmp_path / "pair")
    file = write_recipe(tiny_recipe(tmp_path, text), tmp_path / "recipe.yaml")
    environment = {**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(ROOT)}
    for arguments, message in (
        (["train.stepz=3"], "train.stepz"),
        (["--set", "train.steps=3"], "--set has been renamed: use section.key=value"),
        (["--only", "state"], "--only has been renamed: use --status or --cancel"),
    ):
        command = [*SUBMIT, str(file), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "submitit"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(TrainingError, match="nobody else may write there"):
        jobs_of(tmp_path)
    spec = JobSpec(run=int, name="job", folder=tmp_path)
    with pytest.raises(TrainingError, match=f"chmod go-w {folder}"):
        submit([spec], Resources(cluster="local", nodes=1, tasks_per_node=1))
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    assert jobs_of(tmp_path) == []


def test_files_of_other_names_are_no_jobs(tmp_path: Path) -> None:
    (tmp_path / "submitit").mkdir(mode=0o700)
    for name in ("12_submitted.pkl", "3_0_submitted.pkl", "x_submitted.pkl"):
        (tmp_path / "submitit" / name).touch()
    assert [job.job_id for job in jobs_of(tmp_path)] == ["3", "12"]
