"""The tests that need CUDA, run by pytest."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from armd_scale.bench.gpu_check.results import NEEDS_CUDA, Recorder
from armd_scale.parallel.environment import read_environment

FILES = ("tests/model/test_attention.py", "tests/data/test_batch.py")
NAME = "pytest -m gpu"


def run(recorder: Recorder, *, dry: bool, folder: Path) -> None:
    """Run the section."""
    if find_spec("pytest") is None or not all(Path(file).exists() for file in FILES):
        recorder.skip(NAME, "skipped: needs pytest and the folder tests/")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if read_environment().device.type != "cuda" and done.returncode == 0:
        # Without CUDA pytest collects the tests and skips them, which is worth checking too.
        recorder.skip(NAME, f"{NEEDS_CUDA} ({lines[-1]})")
        return
    recorder.check(done.returncode == 0, NAME, lines[-1] if lines else "no output")
