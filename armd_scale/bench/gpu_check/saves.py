"""How long training waits for a checkpoint, written in the background and waited for."""

import json
from pathlib import Path

from armd_scale.bench.gpu_check.results import Recorder
from armd_scale.bench.suites.checkpoint import compare_saves
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig

# About 2.7 GB with the optimizer state.
LARGE = resolve_model(
    ModelConfig(
        layers=12, hidden=1024, ffn_hidden=2816, heads=16, vocab_size=16384, two_stream_layers=2
    )
)
SMALL = resolve_model(
    ModelConfig(layers=2, hidden=64, ffn_hidden=128, heads=4, vocab_size=512, two_stream_layers=1)
)


def run(recorder: Recorder, *, dry: bool, folder: Path) -> None:
    """Run the section."""
    result = compare_saves(saves=1 if dry else 2, model=SMALL if dry else LARGE)
    (folder / "saves.json").write_text(json.dumps(result, indent=2, default=str) + "\n")
    gigabytes = result["checkpoint_bytes"] / 1e9
    background, synchronous = (
        result["stall_seconds"][kind]["median"] for kind in ("asynchronous", "synchronous")
    )
    load = result["load_seconds"]["median"]
    # A copy to pinned memory at 10 GB/s, and a constant for small checkpoints.
    bound = 0.1 * gigabytes + 0.1
    value = f"{background:.2f} s for {gigabytes:.2f} GB"
    recorder.check(background < bound, "stall of a background save", value, f"< {bound:.2f} s")
    recorder.info("stall of a synchronous save", f"{synchronous:.2f} s")
    recorder.info("load, hashes checked", f"{load:.2f} s")
