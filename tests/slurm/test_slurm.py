"""The batch scripts on a real Slurm of two nodes, with everything that ends jobs too early."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from armd_scale.config.schema import Recipe
from tests.support.cli import (
    ROOT,
    TIMING,
    TRAIN,
    contents,
    launch,
    tiny_recipe,
    write_recipe,
    write_text,
)
from tests.support.slurm import Cluster, cluster, missing, wait_for

pytestmark = pytest.mark.slow(minutes=4)

ON_TWO_NODES = (
    "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0",
    "--oversubscribe", "--mem=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = missing()
    if reason is not None:
        assert "CI" not in os.environ, reason
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with what the scripts use of the project's root."""
    for name in ("slurm", "tools", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def endless_run(folder: Path, text: str) -> tuple[Recipe, Path]:
    """A run that does not finish by itself, and the file of its recipe."""
    folder.mkdir()
    recipe = tiny_recipe(folder, text, train__steps=100_000, checkpoint__every_steps=25)
    return recipe, write_recipe(recipe, folder / "recipe.yaml")


def curve(recipe: Recipe) -> list[dict[str, Any]]:
    """The metrics of every step so far, without those that depend on the clock."""
    path = Path(recipe.run.folder) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [line for line in map(json.loads, text.split("\n")[:-1]) if "loss" in line]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def launches(recipe: Recipe) -> list[dict[str, Any]]:
    path = Path(recipe.run.folder) / "launches.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_steps(recipe: Recipe, num_launches: int) -> None:
    """Wait until the run was launched this many times and has taken 30 steps since."""
    wait_for(lambda: len(launches(recipe)) == num_launches, seconds=180)
    done = len(curve(recipe))
    wait_for(lambda: len(curve(recipe)) >= done + 30, seconds=60)


def process_of(job: str, rank: int) -> psutil.Process:
    """The process of a rank of a job."""
    for process in psutil.process_iter():
        try:
            if "armd_scale.train" in process.cmdline() and "srun" not in process.name():
                variables = process.environ()
                if (variables["SLURM_JOB_ID"], variables["SLURM_PROCID"]) == (job, str(rank)):
                    return process
        except (psutil.Error, KeyError):
            continue
    raise AssertionError(f"no rank {rank} of job {job}")


@pytest.mark.timeout(600)  # of which Slurm's own waits are two minutes
def test_a_run_continues_through_everything_that_ends_its_job(slurm: Cluster, here: Path) -> None:
    text = write_text(here / "pair")
    (whole_recipe, whole_file), (recipe, file) = (
        endless_run(here / name, text) for name in ("a", "b")
    )
    limit = ("--time=60", "--signal=USR1@110")
    script = "slurm/pretrain_1b.sh"
    job = slurm.submit(*ON_TWO_NODES, *limit, script, file, "run.seed=1234", folder=here)

    wait_for_steps(recipe, 1)
    # Slurm stores limits in minutes, checks them every 30 s, and may send the signal up to 30 s
    # early. So a limit one to two minutes ahead, with a signal 110 s before it, is signaled at the
    # next check, whatever the second of the minute is.
    hours, minutes, _ = slurm.job(job)["RunTime"].split(":")
    soon = 60 * int(hours) + int(minutes) + 2
    slurm.call("scontrol", "update", f"JobId={job}", f"TimeLimit={soon}")
    wait_for(lambda: slurm.job(job)["Restarts"] == "1", seconds=90)
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_for_steps(recipe, 2)
    slurm.call("scancel", "--signal=USR1", job)
    wait_for_steps(recipe, 3)
    process_of(job, 1).send_signal(signal.SIGKILL)
    wait_for_steps(recipe, 4)
    slurm.call("scontrol", "requeue", job)
    wait_for_steps(recipe, 5)

    log = (Path(recipe.run.folder) / "log.txt").read_text()
    assert log.count("resumed from") == 4
    assert log.count("stopped by signal 10;") == 2
    assert log.count("stopped by signal 15;") == 1
    assert "rank 1 (process" in log
    for start in launches(recipe):
        assert len(start["hosts"]) == 2
        assert start["variables"]["SLURM_JOB_ID"] == job
        assert "torch" in start["packages"]
    logs = [(here / f"pretrain_1b-{job}.log").read_text()]
    logs += [(here / "logs" / f"pretrain_1b-{job}-{rank}.log").read_text() for rank in (0, 1)]
    assert "status 138: requeueing (restart 1)" in logs[0]
    assert "status 137: requeueing (restart 3)" in logs[0]
    assert "Traceback" not in "".join(logs)

    slurm.call("scancel", job)
    assert slurm.wait_for_end(job)["JobState"] == "CANCELLED"
    assert "requeueing (restart 4)" not in (here / f"pretrain_1b-{job}.log").read_text()
    interrupted = curve(recipe)
    assert len(interrupted) > 120
    assert [line["step"] for line in interrupted] == list(range(1, len(interrupted) + 1))
    # Compared with two ranks without Slurm, which start only now and so do not slow the job down.
    ranks = launch(TRAIN, whole_file, size=2, folder=here / "a")
    wait_for(lambda: len(curve(whole_recipe)) >= len(interrupted), seconds=120)
    for rank in ranks:
        rank.send(signal.SIGKILL)
    assert interrupted == curve(whole_recipe)[: len(interrupted)]


def test_an_invalid_recipe_ends_the_job(slurm: Cluster, here: Path) -> None:
    job = slurm.submit(*ON_TWO_NODES, "slurm/pretrain_1b.sh", "train.stepz=1", folder=here)
    ended = slurm.wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    log = (here / "logs" / f"pretrain_1b-{job}-0.log").read_text()
    assert "train.stepz" in log


def test_an_array_writes_the_same_files_as_a_single_run(slurm: Cluster, here: Path) -> None:
    (here / "text").mkdir()
    sources = sorted((ROOT / "armd_scale").rglob("*.py"))
    for number in range(7):
        lines = [json.dumps({"text": path.read_text()}) + "\n" for path in sources[number::7]]
        (here / "text" / f"{number}.jsonl").write_text("".join(12 * lines))  # units are of 1 MB
    tokenizer = str(here / "whole.tokenizer")
    options = ("--input", "text/*.jsonl", "--split", "0.8,0.2")
    train = ("--tokenizer", "train:sentencepiece:400")
    slurm.call(sys.executable, "tools/preprocess.py",
               *options, *train, "--output", "whole", folder=here)  # fmt: skip
    job = slurm.submit(
        "--array=0-2", "--cpus-per-task=1", "--mem=0", "slurm/preprocess_array.sh",
        "parts", *options, "--tokenizer", tokenizer, folder=here,
    )  # fmt: skip
    wait_for(lambda: not slurm.call("squeue", "-h"), seconds=240)
    merged = sorted(here.glob("preprocess_merge-*.log"))
    assert len(merged) == 1, (job, contents(here))
    assert merged[0].read_text().endswith("parts_train: ok\nparts_valid: ok\n")
    for part in range(3):
        assert (here / f"parts.shard-{part}-of-3_train.bin").stat().st_size > 0
    for side in ("train", "valid"):
        for kind in ("bin", "idx"):
            name = f"_{side}.{kind}"
            assert (here / f"parts{name}").read_bytes() == (here / f"whole{name}").read_bytes()
