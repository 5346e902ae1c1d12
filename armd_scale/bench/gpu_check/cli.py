"""Run the sections of the GPU check one after another, each in a process of its own.

A section that fails, crashes or hangs is reported, and the next one runs: its process has its own
CUDA context, and is killed at its time limit. The whole check keeps to a time budget.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from armd_scale.arguments import path, positive_number
from armd_scale.bench.gpu_check.results import Recorder, read_results, summary_table
from armd_scale.errors import TrainingError

BUDGET_SECONDS = 480
DRY_LIMIT_FACTOR = 5
"""Limits are for a GPU machine of its own; a dry run may share two cores with other work."""
MIN_SECONDS = 15
"""A section is not started with less time left than this: it would only be killed."""
_EXAMPLE = """examples:
  bash tools/gpu_check.sh
  bash tools/gpu_check.sh kernels steps --output runs/gpu_check
  bash tools/gpu_check.sh --dry          # without a GPU: the same sections, tiny, on CPU"""


class Section(NamedTuple):
    """A part of the check."""

    name: str
    limit_seconds: float
    """After this its process is killed."""
    summary: str

    @property
    def function(self) -> str:
        """`module:name` of the function `run(recorder, *, dry, folder)`; imported on use."""
        return f"armd_scale.bench.gpu_check.{self.name}:run"


# In order of importance, because the budget may end before the last one.
SECTIONS = (
    Section("libraries", 60, "versions, collectives in a one-process job, memory of the context"),
    Section("kernels", 100, "attention kernels against float32, speed of attention and LM head"),
    Section("training", 150, "the training command: loss falls, resume and determinism are exact"),
    Section("steps", 120, "training steps of three model sizes against their rooflines"),
    Section("decoding", 60, "rounds of decoding in bfloat16 and float32"),
    Section("saves", 80, "how long training waits for a checkpoint"),
    Section("tests", 110, "the tests that need CUDA"),
)


def main() -> int:
    """Run the check and return its exit status: 0 if nothing failed, else 1."""
    args = _parser().parse_args()
    names = args.sections or [section.name for section in SECTIONS]
    args.output.mkdir(parents=True, exist_ok=True)
    if args.only:
        return _run_here(args.only, dry=args.dry, folder=args.output)
    if not args.dry:
        _require_cuda()
    sections = [section for section in SECTIONS if section.name in names]
    budget = args.budget * (DRY_LIMIT_FACTOR if args.dry else 1)
    return run_sections(sections, dry=args.dry, folder=args.output, budget_seconds=budget)


def run_sections(
    sections: Sequence[Section], *, dry: bool, folder: Path, budget_seconds: float
) -> int:
    """Run sections in processes of their own, print a summary, return 1 if anything failed.

    Args:
        sections: the sections, in order.
        dry: run at tiny sizes; what needs CUDA is skipped.
        folder: where results.jsonl and files of sections go; former results are replaced.
        budget_seconds: total time; sections that do not fit any more are skipped.
    """
    file = _results_file(folder)
    file.unlink(missing_ok=True)
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    for section in sections:
        print(f"\n== {section.name}: {section.summary}", flush=True)
        section_start = time.perf_counter()
        # The budget is for all sections: a slow one takes time from those after it.
        left = budget_seconds - (section_start - start)
        recorder = Recorder(section.name, file)
        if left < MIN_SECONDS:
            recorder.skip("the whole section", f"skipped: no time left of {budget_seconds:g} s")
        else:
            _run_in_process(section, recorder, dry=dry, folder=folder, limit=left)
        seconds[section.name] = time.perf_counter() - section_start
    results = read_results(file)
    failures = [result for result in results if result.status == "fail"]
    print(f"\n{summary_table(results, seconds)}\n")
    for result in failures:
        expected = f" (expected {result.bound})" if result.bound else ""
        print(f"FAIL  {result.section}: {result.name}: {result.value}{expected}")
    print(f"{len(failures)} failed; all figures are in {file}")
    return 1 if failures else 0


def _run_in_process(
    section: Section, recorder: Recorder, *, dry: bool, folder: Path, limit: float
) -> None:
    """Run a section in a new process; a crash or a timeout becomes a failed result."""
    limit = min(limit, section.limit_seconds * (DRY_LIMIT_FACTOR if dry else 1))
    # The same command with --only, so that a section starts without any state of another one.
    command = [sys.executable, "-m", "armd_scale.bench.gpu_check"]
    command += ["--only", section.name, "--output", str(folder), *(["--dry"] if dry else [])]
    # A group of its own, so that a timeout also ends the processes that the section has started,
    # which would otherwise keep their GPU memory.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        recorder.check(False, "the section finishes", "killed", f"within {limit:.0f} s")
        return
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status != 0:
        recorder.check(False, "the section runs to its end", f"exit status {status}", "0")


def _run_here(name: str, *, dry: bool, folder: Path) -> int:
    """Run one section in this process."""
    section = next(section for section in SECTIONS if section.name == name)
    run = resolve_name(section.function)
    run(Recorder(name, _results_file(folder)), dry=dry, folder=folder)
    # A failed check is in the results file already; another status than 0 means a crash.
    return 0


def _results_file(folder: Path) -> Path:
    return folder / "results.jsonl"


def _require_cuda() -> None:
    # Imported here, because it takes seconds that --help and invalid options need not wait for.
    import torch

    if not torch.cuda.is_available():
        raise TrainingError(
            "the GPU check needs a CUDA device (torch finds none): run it on a machine with a GPU, "
            "or add --dry to try it on CPU"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bash tools/gpu_check.sh",
        description="Does everything run on this GPU, and how fast? Eight minutes on one GPU.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [section.name for section in SECTIONS]
    chosen = f"sections to run (default: all of {' '.join(names)})"
    # Some versions of argparse look for the empty list of `nargs="*"` among the choices too.
    parser.add_argument("sections", nargs="*", choices=[*names, []], metavar="SECTION", help=chosen)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on CPU; no GPU needed")
    folder = "folder for results.jsonl and logs (default: %(default)s)"
    parser.add_argument("--output", type=path, default=Path("runs/gpu_check"), help=folder)
    budget = "total time in seconds (default: %(default)s)"
    limit = {"type": positive_number, "default": BUDGET_SECONDS, "metavar": "S"}
    parser.add_argument("--budget", **limit, help=budget)
    # The process of one section.
    parser.add_argument("--only", choices=names, help=argparse.SUPPRESS)
    return parser
