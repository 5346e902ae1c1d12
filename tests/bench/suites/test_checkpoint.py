"""The checkpoint benchmark times both kinds of saves, loads and dd."""

from pathlib import Path

import pytest

from armd_scale.bench.suites.checkpoint import compare_saves, table
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig
from tests.support.processes import FORKSERVER

pytestmark = pytest.mark.slow

TINY = resolve_model(ModelConfig(layers=2, hidden=16, ffn_hidden=24, heads=2, vocab_size=64))


def test_both_kinds_of_saves_are_timed(tmp_path: Path) -> None:
    # In a new process, because it forms a job of its own.
    with FORKSERVER.Pool(1) as pool:
        result = pool.apply(compare_saves, kwds={"saves": 2, "model": TINY, "folder": tmp_path})
    stalls = result["stall_seconds"]
    assert stalls.keys() == result["first_stall_seconds"].keys() == {"synchronous", "asynchronous"}
    assert all(0 < kind["min"] <= kind["median"] <= kind["max"] for kind in stalls.values())
    assert all(kind["repeats"] == 2 for kind in stalls.values())
    assert result["processes"] == 1
    assert result["checkpoint_bytes"] > 16 * result["parameters"]
    assert result["step_seconds"]["median"] > 0
    assert list(tmp_path.iterdir()) == []
    for kind in ("dd_write_seconds", "load_seconds", "dd_read_seconds"):
        assert result[kind]["repeats"] == 2
        assert result[kind]["median"] > 0
    assert result["from_storage_share"].keys() == {"load", "dd read"}


def test_bandwidth_is_compared_with_dd() -> None:
    seconds = {"synchronous": 4.0, "asynchronous": 0.5}
    rows = table(
        {
            "checkpoint_bytes": 2_000_000_000,
            "stall_seconds": {kind: summary(stall) for kind, stall in seconds.items()},
            "background_seconds": summary(5.0),
            "dd_write_seconds": summary(2.0),
            "load_seconds": summary(3.0),
            "dd_read_seconds": summary(1.0),
            "from_storage_share": {"load": 1.0, "dd read": 0.5},
        }
    )
    assert [row["MB/s"] for row in rows] == pytest.approx([500, 4000, 400, 1000, 2000 / 3, 2000])
    assert [row["dd time ratio"] for row in rows] == [2.0, 0.25, 2.5, 1.0, 3.0, 1.0]
    assert [row["from storage share"] for row in rows] == ["", "", "", "", 1.0, 0.5]


def summary(seconds: float) -> dict[str, float]:
    return dict.fromkeys(("median", "min", "max"), seconds)
