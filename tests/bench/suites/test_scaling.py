"""Measured times are compared with a line over FLOPs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.profiler import MATMUL, profile_operators
from armd_scale.bench.suites.scaling import (
    accumulation_steps,
    fit_line,
    time_accumulation,
    time_workloads,
)
from tests.bench.workloads import TINY

CPU = torch.device("cpu")


def test_varied_micro_batches_have_a_row_each(groups: ProcessGroupCollection) -> None:
    workloads = {n: dataclasses.replace(TINY, micro_batch=n) for n in (1, 2, 3)}
    rows: list[dict[str, Any]] = time_workloads(
        "micro_batch", workloads, groups, device=CPU, repeats=1
    )
    assert [row["value"] for row in rows] == [1, 2, 3]
    assert all(row["GFLOPs"] > 0 for row in rows)


def test_accumulated_micro_batches_add_flops(groups: ProcessGroupCollection) -> None:
    rows = time_accumulation(TINY, (1, 2, 4), groups, device=CPU, repeats=1)
    counts = [row["GFLOPs"] for row in rows]
    assert counts == pytest.approx([counts[0], 2 * counts[0], 4 * counts[0]])
    steps = accumulation_steps(TINY, (1, 3), groups, device=CPU)
    matmuls = {count: num_matmuls(step) for count, step in steps.items()}
    assert matmuls[3] == 3 * matmuls[1] > 0


def num_matmuls(step: Callable[[], None]) -> float:
    """Matrix products of a step."""
    operators = profile_operators(step, repeats=1, device=CPU)
    return sum(operator.calls for operator in operators if operator.group == MATMUL)


def test_points_on_a_line_have_no_residual() -> None:
    rows = fit_line("layers", {2: 1000, 4: 2000, 8: 4000}, [3.0, 5.0, 9.0])
    assert [row["ratio"] for row in rows] == pytest.approx([1, 1, 1])
    assert rows[0]["worst residual"] == pytest.approx(0, abs=1e-9)


def test_points_off_a_line_have_a_residual() -> None:
    rows: list[dict[str, Any]]
    rows = fit_line("layers", {2: 1000, 4: 2000, 8: 3000}, [1.0, 2.0, 6.0])
    ratios = [row["ratio"] for row in rows]
    assert {row["worst residual"] for row in rows} == {max(abs(ratio - 1) for ratio in ratios)}
    assert rows[0]["worst residual"] > 0.1
