"""tools/gpu_check.sh without a GPU: sections run, results are counted, failures are reported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from armd_scale.bench.gpu_check.cli import SECTIONS, Section, run_sections
from armd_scale.bench.gpu_check.results import Recorder, Result, read_results, summary_table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run_check(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the script with this test's Python first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "tools" / "gpu_check.sh"), *arguments, "--output", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_dry_run_of_two_sections_passes_and_skips_what_needs_cuda(tmp_path: Path) -> None:
    done = run_check(tmp_path, "--dry", "libraries", "kernels")
    assert done.returncode == 0, done.stdout + done.stderr
    results = read_results(tmp_path / "results.jsonl")
    assert {result.section for result in results} == {"libraries", "kernels"}
    statuses = {result.status for result in results}
    assert "fail" not in statuses
    assert {"pass", "skip", "info"} <= statuses
    skipped = [result for result in results if result.status == "skip"]
    assert all(result.value == "skipped: needs CUDA" for result in skipped)
    assert "| section | pass | fail | skip | info | seconds |" in done.stdout
    assert "0 failed" in done.stdout


def test_without_a_gpu_only_a_dry_run_is_possible(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "armd_scale.bench.gpu_check", "--output", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "add --dry" in done.stderr


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    done = run_check(tmp_path, "--dry", "memory")
    assert done.returncode == 2
    assert "invalid choice: 'memory'" in done.stderr


def test_a_section_over_its_limit_fails_and_the_rest_is_skipped_when_time_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No section can even import torch in a hundredth of a second, five times that in a dry run.
    sections = [Section("libraries", 0.01, "killed"), Section("kernels", 100, "runs")]
    assert run_sections(sections, dry=True, folder=tmp_path, budget_seconds=15.01) == 1
    libraries, kernels = read_results(tmp_path / "results.jsonl")
    assert (libraries.status, libraries.value) == ("fail", "killed")
    assert (kernels.status, kernels.section) == ("skip", "kernels")
    assert "FAIL  libraries: the section finishes: killed" in capsys.readouterr().out


def test_results_are_counted_by_section_and_status(tmp_path: Path) -> None:
    recorder = Recorder("steps", tmp_path / "results.jsonl")
    recorder.check(True, "fast", "1 ms", "< 2 ms")
    recorder.check(False, "slow", "3 ms", "< 2 ms")
    recorder.info("memory", "1 GiB")
    recorder.skip("kernel")
    results = read_results(tmp_path / "results.jsonl")
    assert results[1] == Result("steps", "fail", "slow", "3 ms", "< 2 ms")
    assert "| steps | 1 | 1 | 1 | 1 | 7 |" in summary_table(results, {"steps": 7.2})


def test_every_section_names_a_module() -> None:
    folder = ROOT / "armd_scale" / "bench" / "gpu_check"
    assert all((folder / f"{section.name}.py").exists() for section in SECTIONS)
