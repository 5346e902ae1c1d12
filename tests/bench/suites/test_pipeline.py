"""Pipelines are held to the time that their schedule leads to expect."""

from collections.abc import Callable

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.operators import PRODUCTS, profile_operators
from armd_scale.bench.suites.pipeline import SHAPE, places, table, time_on_rank
from armd_scale.bench.suites.scaling import accumulating_steps, fit_line, time_accumulation
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.pipeline.partition import all_stages, layer_costs
from tests.bench.test_speed import TINY
from tests.support.spawn import run_on_ranks


def timed(groups: ProcessGroupCollection) -> float:
    return time_on_rank(read_environment(), groups, shape=TINY, micro_batches=3, runs=1)


def test_a_step_runs_on_two_stages() -> None:
    assert all(taken > 0 for taken in run_on_ranks(timed, 2, parallel=ParallelConfig(pipeline=2)))


def test_the_ratio_is_to_the_bubble() -> None:
    # Of 8 micro-batches: 9 turns of half the work, 11 of a quarter.
    rows = table({1: 16.0, 2: 9.0, 4: 11.0}, micro_batches=8, flops=2_000)
    assert [row["expected ms"] for row in rows] == pytest.approx([16000, 9000, 5500])
    assert [row["ratio"] for row in rows] == pytest.approx([1, 1, 2])
    assert [row["processes"] for row in rows] == [1, 2, 4]
    assert {row["cores"] for row in rows} == {places()}
    assert rows[0]["worst residual"] == pytest.approx(1 if places() >= 4 else 0)


def test_the_stages_that_are_timed_cost_the_same() -> None:
    costs = layer_costs(SHAPE.model, SHAPE.seq_length)
    for number in (2, 4):
        layout = ParallelConfig(pipeline=number)
        stages = all_stages(SHAPE.model, layout, seq_length=SHAPE.seq_length)
        by_stage = [sum(costs[layer] for layer in stage.layers) for stage in stages]
        assert max(by_stage) * number < 1.04 * sum(costs)


def test_micro_batches_add_operations(groups: ProcessGroupCollection) -> None:
    cpu = torch.device("cpu")
    rows = time_accumulation(TINY, (1, 2, 4), groups, device=cpu, runs=1)
    counts = [row["10^9 operations"] for row in rows]
    assert counts == pytest.approx([counts[0], 2 * counts[0], 4 * counts[0]])
    steps = accumulating_steps(TINY, (1, 3), groups, device=cpu)
    products = {number: multiplied(step) for number, step in steps.items()}
    assert products[3] == 3 * products[1] > 0


def multiplied(step: Callable[[], None]) -> float:
    """Matrix products of a step."""
    found = profile_operators(step, runs=1, device=torch.device("cpu"))
    return sum(operator.calls for operator in found if operator.group == PRODUCTS)


def test_what_lies_on_a_line_has_no_residual_and_what_bends_has() -> None:
    straight = fit_line("layers", {2: 1000, 4: 2000, 8: 4000}, [3.0, 5.0, 9.0])
    assert [row["ratio"] for row in straight] == pytest.approx([1, 1, 1])
    assert straight[0]["worst residual"] == pytest.approx(0, abs=1e-9)
    bent = fit_line("layers", {2: 1000, 4: 2000, 8: 3000}, [1.0, 2.0, 6.0])
    ratios = [row["ratio"] for row in bent]
    assert {row["worst residual"] for row in bent} == {max(abs(ratio - 1) for ratio in ratios)}
    assert bent[0]["worst residual"] > 0.1
