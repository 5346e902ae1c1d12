"""The real training command: losses fall, a stopped run resumes exactly, determinism holds."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armd_scale.bench.gpu_check.results import Recorder
from armd_scale.data.indexed_format import IndexedPart, write_bin, write_idx

VOCAB_SIZE = 1000
# l2r, shuffled and joint blocks: one stream, folded causal attention, and FlexAttention.
ORDER = (
    "order={policy: stages, stages: [{until_step: 6, policy: l2r}, "
    "{until_step: 14, policy: progressive, ar_steps: 2, ramp_end: 8, rho: 16}, "
    "{policy: strided, streams: [1, 2, 4]}]}"
)
OVERRIDES = (
    ORDER,
    "data.seq_length=512",
    "data.workers=2",
    f"model.vocab_size={VOCAB_SIZE}",
    "model.layers=8",
    "model.two_stream_layers=4",
    "model.hidden=512",
    "model.ffn_hidden=1408",
    "model.heads=8",
    "model.kv_heads=4",
    "train.micro_batch=8",
    "train.global_batch=16",
    "train.steps=24",
    "optim.warmup_steps=4",
    "optim.decay_steps=4",
    "optim.lr=1e-3",
    "optim.ema_decay=0.9",
    "checkpoint.every_steps=8",
    "eval.every_steps=12",
    "eval.samples=32",
    "log.every_steps=1",
    "log.wandb.mode=disabled",
)
DRY_OVERRIDES = (
    "train.precision=fp32",
    "data.seq_length=64",
    "data.workers=0",
    "model.layers=2",
    "model.two_stream_layers=1",
    "model.hidden=32",
    "model.ffn_hidden=64",
    "model.heads=2",
    "model.kv_heads=1",
    "eval.samples=8",
    "optim.lr=1e-2",
)
STOP_AFTER_STEPS = 11
"""Between two checkpoints, so that the stopped run must save one of its own."""


@dataclass(frozen=True)
class Outcome:
    """What one run of the command left behind."""

    status: int
    steps: dict[int, dict[str, float]]
    """Lines of metrics.jsonl with a loss, by step."""
    num_evaluations: int
    seconds: float


@dataclass(frozen=True)
class Runner:
    """Starts training runs that differ in a few keys."""

    folder: Path
    overrides: tuple[str, ...]

    def train(
        self, name: str, *more: str, stop_if: Callable[[Path], bool] | None = None
    ) -> Outcome:
        """Train to the end, or send SIGTERM once `stop_if(metrics file)` is true."""
        start = time.perf_counter()
        run_folder = self.folder / name
        metrics = run_folder / "metrics.jsonl"
        command = [sys.executable, "-m", "armd_scale.train", "recipes/pretrain_1b.yaml"]
        command += [*self.overrides, f"run.folder={run_folder}", *more]
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                while stop_if is not None and process.poll() is None and not stop_if(metrics):
                    time.sleep(0.1)
                if stop_if is not None:
                    # Does nothing if the run has ended by itself; its status is then 0, not 143.
                    process.terminate()
                process.wait()
            finally:  # after an exception or Ctrl-C the run must not stay on the GPU
                process.kill()
        lines = _read_lines(metrics)
        steps = {int(line["step"]): line for line in lines if "loss" in line}
        evaluations = sum("eval_order" in line for line in lines)
        return Outcome(process.returncode, steps, evaluations, time.perf_counter() - start)


def run(recorder: Recorder, *, dry: bool, folder: Path) -> None:
    """Run the section."""
    folder = (folder / "training").absolute()
    # Former runs would be resumed.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prefix = write_shards(folder / "text")
    data = (f"data.train={prefix}", f"data.valid={prefix}")
    runner = Runner(folder, (*OVERRIDES, *data, *(DRY_OVERRIDES if dry else ())))
    # Starting a process takes longer than its few steps, so runs that need not wait for each other
    # share the GPU.
    with ThreadPoolExecutor() as pool:
        first_run = pool.submit(runner.train, "whole")
        stopped = pool.submit(runner.train, "stopped", stop_if=_has_enough_steps).result()
        whole = first_run.result()
        _check_whole_run(recorder, whole)
        num_exact = 4 if dry else 10
        repeated = [
            pool.submit(runner.train, name, *_determinism_overrides(num_exact))
            for name in ("exact", "exact_again")
        ]
        _check_resume(recorder, whole, stopped=stopped, resumed=runner.train("stopped"))
        _check_determinism(recorder, *(run.result() for run in repeated), num_steps=num_exact)


def write_shards(prefix: Path) -> str:
    """Write documents of a simple arithmetic grammar as a .bin/.idx pair; return its prefix."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, VOCAB_SIZE, 3000)
    documents = [
        # Every token is the one before plus 3, modulo VOCAB_SIZE: a few steps learn some of it.
        (5 * start + 3 * np.arange(rng.integers(20, 400))) % VOCAB_SIZE
        for start in starts
    ]
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    tokens_file, lengths_file = prefix.with_suffix(".tokens"), prefix.with_suffix(".lengths")
    documents_file = prefix.with_suffix(".documents")
    tokens_file.write_bytes(np.concatenate(documents).astype(np.uint16).tobytes())
    lengths_file.write_bytes(lengths.tobytes())
    documents_file.write_bytes(np.arange(len(documents)).tobytes())  # one sequence each
    count = len(documents)
    part = IndexedPart(tokens_file, lengths_file, 0, count, documents_file, 0, count)
    write_bin(prefix.with_suffix(".bin"), [part])
    write_idx(prefix.with_suffix(".idx"), [part], dtype=np.dtype(np.uint16))
    return str(prefix)


def _check_whole_run(recorder: Recorder, whole: Outcome) -> None:
    finished = whole.status == 0 and len(whole.steps) == 24 and whole.num_evaluations > 0
    value = f"status {whole.status}, {len(whole.steps)} steps, {whole.seconds:.0f} s"
    recorder.check(finished, "24 steps with evaluation and background saves", value)
    if finished:
        first, last = whole.steps[1], whole.steps[24]
        value = f"{first['loss']:.3f} -> {last['loss']:.3f}"
        recorder.check(last["loss"] < first["loss"] - 0.5, "the loss falls", value, "by 0.5")
        recorder.info("memory", f"{last['memory_gib']:.2f} GiB")


def _has_enough_steps(metrics: Path) -> bool:
    return sum("loss" in line for line in _read_lines(metrics)) >= STOP_AFTER_STEPS


def _check_resume(
    recorder: Recorder, whole: Outcome, *, stopped: Outcome, resumed: Outcome
) -> None:
    """Compare the losses of a run that SIGTERM stopped and the same command continued."""
    common = resumed.steps.keys() & whole.steps.keys()
    # bfloat16 kernels without determinism add in any order, so losses agree to rounding only.
    equal = [s for s in common if abs(resumed.steps[s]["loss"] - whole.steps[s]["loss"]) < 2e-3]
    # 143 is 128 + SIGTERM; 0 if the run ended before the signal arrived.
    ok = stopped.status in (0, 143) and resumed.status == 0 and len(equal) == len(common) == 24
    value = f"status {stopped.status} and {resumed.status}, {len(equal)} of {len(common)} steps"
    recorder.check(ok, "SIGTERM saves, and the same command continues equally", value)


def _determinism_overrides(num_steps: int) -> tuple[str, ...]:
    # Without checkpoints, so that the two runs compute every step from the same initial weights.
    changes = ("train.deterministic=true", f"train.steps={num_steps}", "eval.every_steps=0")
    return (*changes, "optim.warmup_steps=1", "optim.decay_steps=1", "checkpoint.every_steps=0")


def _check_determinism(
    recorder: Recorder, first: Outcome, second: Outcome, *, num_steps: int
) -> None:
    keys = ("loss", "grad_norm")
    equal = first.steps.keys() == second.steps.keys() and all(
        first.steps[step][key] == second.steps[step][key] for step in first.steps for key in keys
    )
    ok = first.status == second.status == 0 and equal and len(first.steps) == num_steps
    value = f"status {first.status} and {second.status}, {len(first.steps)} steps"
    recorder.check(ok, "train.deterministic: two runs are equal, bit for bit", value)


def _read_lines(metrics: Path) -> list[dict[str, float]]:
    """Return the complete lines of metrics.jsonl; none before it exists."""
    if not metrics.exists():
        return []
    text = metrics.read_text()
    complete = text[: text.rfind("\n") + 1]  # a run may be writing the last line right now
    return [json.loads(line) for line in complete.splitlines()]
