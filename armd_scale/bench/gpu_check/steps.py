"""Training steps of three model sizes against the time that an H100 needs at least."""

import json
from pathlib import Path

import torch

from armd_scale.bench.gpu_check.results import Recorder
from armd_scale.bench.suites.step import WORKLOADS, Workload, time_steps
from armd_scale.bench.table import Row
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

# Milliseconds of forward and backward on an H100 by a roofline: each operator takes its FLOPs at
# 700 TFLOP/s (bf16) or its bytes at 2.9 TB/s, whichever is longer.
ROOFLINE_MS = {
    "1b": {"ar": 106.8, "armd": 147.3, "armd_dense": 142.7},
    "125m": {"ar": 19.5, "armd": 24.1, "armd_dense": 23.5},
    "8b-layers": {"ar": 49.1, "armd": 58.5, "armd_dense": 57.8},
}
MAX_OVER_ROOFLINE = 1.35
TINY = Workload(
    model=resolve_model(
        ModelConfig(layers=2, hidden=64, ffn_hidden=128, heads=4, kv_heads=2, vocab_size=512)
    ),
    seq_length=64,
    micro_batch=2,
)


def run(recorder: Recorder, *, dry: bool, folder: Path) -> None:
    """Run the section."""
    workloads = {"tiny": TINY} if dry else {name: WORKLOADS[name] for name in ROOFLINE_MS}
    environment = read_environment()
    on_cuda = environment.device.type == "cuda"
    with process_groups(environment, ParallelConfig()) as groups:
        for name, workload in workloads.items():
            rows = time_steps(
                workload,
                groups,
                device=environment.device,
                repeats=2 if dry else 7,
                profile=name == "1b",
            )
            (folder / f"step_{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
            for row in rows:
                _record(recorder, name, row, is_hopper=on_cuda and _is_hopper())
            # Gives the memory of these networks back, so that larger ones start unfragmented.
            if on_cuda:
                torch.cuda.empty_cache()


def _is_hopper() -> bool:
    """Tell whether this GPU has an H100's matrix units; an H200 only has faster memory."""
    return torch.cuda.get_device_capability() == (9, 0)


def _record(recorder: Recorder, workload: str, row: Row, *, is_hopper: bool) -> None:
    """Record one case; only cases with a roofline, on the GPU that it is for, have a bound."""
    milliseconds, ratio, flops_ratio, mfu = (
        float(row[column]) for column in ("median ms", "time ratio", "FLOPs ratio", "mfu")
    )
    name = f"step {workload}, {row['case']}"
    value = f"{milliseconds:.1f} ms, {ratio:.3f} x AR (FLOPs {flops_ratio:.3f}), MFU {mfu:.3f}"
    roofline = ROOFLINE_MS.get(workload, {}).get(str(row["case"]))
    if roofline is None or not is_hopper:
        recorder.info(name, value)
        return
    over = milliseconds / roofline
    # The AR step is compared with itself (ratio 1), so only its roofline can fail.
    ok = over < MAX_OVER_ROOFLINE and ratio < 1.08 * flops_ratio + 0.02
    bound = f"< {MAX_OVER_ROOFLINE} x roofline, ratio within 8 % of FLOPs"
    recorder.check(ok, name, f"{value}, {over:.2f} x roofline", bound)
