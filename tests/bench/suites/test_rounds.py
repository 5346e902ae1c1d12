"""The time of a decoding round is split into parts."""

from typing import Any

import pytest

from armd_scale.bench.suites.rounds import profile_rounds
from tests.support.networks import LLAMA, build

pytestmark = pytest.mark.slow

PARTS = ("matmul", "attention", "cache writes", "sampling", "rest")


@pytest.mark.parametrize("streams", [1, 2])
def test_a_rounds_time_is_split(groups, streams):
    network = build(LLAMA, groups, max_positions=256)
    row: dict[str, Any]
    (row,) = profile_rounds(network, streams=(streams,), context=(4,), repeats=2)
    assert (row["streams"], row["tokens"], row["forwards per round"]) == (streams, 4, 1)
    assert all(row[f"{part} ms"] > 0 for part in PARTS[:4])
    assert sum(row[f"{part} ms"] for part in PARTS) == pytest.approx(row["round ms"])
    assert "logits" not in vars(network)  # the wrapper is gone
