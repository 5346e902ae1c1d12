"""The measurement of saves runs and says what it promises."""

import multiprocessing
from pathlib import Path

from armd_scale.bench.checkpoint import compare_saves
from armd_scale.config.schema import ModelConfig

TINY = ModelConfig(layers=2, hidden=16, ffn_hidden=24, heads=2, vocab_size=64)


def test_both_kinds_of_saves_are_timed(tmp_path: Path) -> None:
    # In a process of its own, which forms a job of its own.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(compare_saves, kwds={"saves": 2, "model": TINY, "folder": tmp_path})
    stalls = found["stall_seconds"]
    assert stalls.keys() == found["first_stall_seconds"].keys() == {"synchronous", "asynchronous"}
    assert all(0 < kind["least"] <= kind["median"] <= kind["most"] for kind in stalls.values())
    assert all(kind["runs"] == 2 for kind in stalls.values())
    assert found["processes"] == 1
    assert found["checkpoint_bytes"] > 16 * found["parameters"]
    assert found["step_seconds"]["median"] > 0
    assert list(tmp_path.iterdir()) == []
