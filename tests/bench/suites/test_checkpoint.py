"""The measurement of saves runs and says what it promises."""

import multiprocessing
from pathlib import Path

import pytest

from armd_scale.bench.suites.checkpoint import compare_saves, table
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
    for kind in ("dd_write_seconds", "load_seconds", "dd_read_seconds"):
        assert found[kind]["runs"] == 2
        assert found[kind]["median"] > 0
    assert found["from_storage_share"].keys() == {"load", "dd read"}


def test_bandwidth_is_beside_that_of_dd() -> None:
    seconds = {"synchronous": 4.0, "asynchronous": 0.5}
    rows = table(
        {
            "checkpoint_bytes": 2_000_000_000,
            "stall_seconds": {kind: of(taken) for kind, taken in seconds.items()},
            "background_seconds": of(5.0),
            "dd_write_seconds": of(2.0),
            "load_seconds": of(3.0),
            "dd_read_seconds": of(1.0),
            "from_storage_share": {"load": 1.0, "dd read": 0.5},
        }
    )
    assert [row["MB/s"] for row in rows] == pytest.approx([500, 4000, 400, 1000, 2000 / 3, 2000])
    assert [row["dd time ratio"] for row in rows] == [2.0, 0.25, 2.5, 1.0, 3.0, 1.0]
    assert [row["from storage share"] for row in rows] == ["", "", "", "", 1.0, 0.5]


def of(seconds: float) -> dict[str, float]:
    return dict.fromkeys(("median", "least", "most"), seconds)
