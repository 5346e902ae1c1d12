"""The table of a profile: totals of every group, and its longest operators."""

from collections import defaultdict

import pytest

from armd_scale.bench.profiler import ATTENTION, MATMUL, OTHER, Operator
from armd_scale.bench.suites.profile import table

OPERATORS = [
    Operator(name=name, group=group, calls=calls, milliseconds=milliseconds)
    for name, group, calls, milliseconds in (
        ("mm", MATMUL, 3.0, 5.0), ("flash", ATTENTION, 1.0, 2.0), ("mul", OTHER, 4.0, 1.5),
        ("add", OTHER, 2.0, 1.0), ("copy_", OTHER, 1.0, 0.5),
    )
]  # fmt: skip


def test_groups_add_up_to_the_step_and_operators_to_their_group() -> None:
    rows = table("ar", OPERATORS, wall_milliseconds=12.0, top=1)
    assert {row["case"] for row in rows} == {"ar"}
    by_group: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_group[str(row["group"])].append(float(row["ms"]))
    assert by_group == {"step": [12, 10], MATMUL: [5, 5], ATTENTION: [2, 2], OTHER: [3, 1.5, 1.5]}
    assert [row["operator"] for row in rows[-3:]] == ["all", "mul", "2 more"]
    assert [row["calls"] for row in rows[-3:]] == [7, 4, 3]
    assert rows[-1]["share"] == pytest.approx(0.15)
