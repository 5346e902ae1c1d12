"""Ctrl-C while a command starts: one line, whatever is being imported."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import ROOT

pytestmark = pytest.mark.slow(minutes=0.5)


@pytest.mark.parametrize(
    ("command", "library"),
    [
        (["-m", "armd_scale.train", "recipes/demo_cpu.yaml"], "libtorch_cpu"),
        (["-m", "armd_scale.train", "recipes/demo_cpu.yaml"], "_multiarray_umath"),
        (["tools/evaluate.py", "--help"], "libtorch_python"),
        (["tools/preprocess.py", "--help"], "_multiarray_umath"),
        (["tools/convert_ar_to_armd.py", "--help"], "libtorch_cpu"),
    ],
)
def test_ctrl_c_during_the_imports_ends_in_one_line(command: list[str], library: str) -> None:
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and library not in maps.read_text():
        time.sleep(0.002)  # until the library is being imported
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.decode() == "interrupted: run the same command again to continue\n"
    assert process.returncode == 130
