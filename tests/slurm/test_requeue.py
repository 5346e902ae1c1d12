"""What a batch script does at its end, with a Slurm that requeues and one that refuses to."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import ROOT

SCRIPTS = [path for path in (ROOT / "slurm").glob("*.sh") if "\nsrun " in path.read_text()]


def end(folder: Path, status: int, *, refuses: bool) -> subprocess.CompletedProcess[str]:
    """End a script with a status as the batch scripts do; `scontrol` is a stand-in for Slurm's."""
    scontrol = folder / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho scontrol $@\nexit {int(refuses)}\n")
    scontrol.chmod(0o755)
    script = f"trap 'bash slurm/requeue.sh $? $SECONDS || exit $?' EXIT\nexit {status}"
    variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.run(
        ["bash", "-c", script], env=variables, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("status", [138, 75, 137])
def test_a_job_that_cannot_be_requeued_says_so(tmp_path: Path, status: int) -> None:
    done = end(tmp_path, status, refuses=True)
    assert done.returncode == 75
    assert "job 7 cannot be requeued; what it has saved is kept: submit the same" in done.stdout


@pytest.mark.parametrize("status", [138, 75, 137])
def test_a_job_is_requeued(tmp_path: Path, status: int) -> None:
    done = end(tmp_path, status, refuses=False)
    assert done.returncode == status
    assert "scontrol requeue 7" in done.stdout
    assert "cannot" not in done.stdout


@pytest.mark.parametrize("status", [0, 2, 143])
def test_other_ends_keep_their_status(tmp_path: Path, status: int) -> None:
    done = end(tmp_path, status, refuses=False)
    assert (done.returncode, done.stdout) == (status, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_passes_its_cpus_on_to_srun(script: Path) -> None:
    text = script.read_text()
    assert "#SBATCH --cpus-per-task=" in text
    assert text.index("source slurm/env.sh") < text.index("\nsrun ")
    assert "trap " not in text or "requeue.sh $? $SECONDS || exit $?' EXIT" in text


def test_the_cpus_of_a_task_are_exported(tmp_path: Path) -> None:
    command = f"source {ROOT}/slurm/env.sh; printenv SRUN_CPUS_PER_TASK"
    variables = {**os.environ, "SLURM_CPUS_PER_TASK": "6"}
    done = subprocess.run(
        ["bash", "-c", command], env=variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "6\n"
