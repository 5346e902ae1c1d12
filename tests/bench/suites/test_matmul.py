"""FLOPs per second of matrix products."""

from typing import Any

import pytest

from armd_scale.bench.suites.matmul import measure_matmul


def test_the_rate_of_a_product_is_compared_with_the_peak() -> None:
    row: dict[str, Any]
    (row,) = measure_matmul(repeats=1, sizes=(64,))
    assert row["TFLOP/s"] == pytest.approx(2 * 64**3 / (row["median ms"] / 1e3) / 1e12)
    assert row["ratio"] == pytest.approx(row["TFLOP/s"] / row["peak of mfu, TFLOP/s"])
