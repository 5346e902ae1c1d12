"""Pipelines are compared with the time that 1F1B predicts."""

import pytest
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.suites.pipeline import WORKLOAD, num_devices, table, time_on_rank
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.pipeline.partition import all_stages, layer_costs
from tests.bench.workloads import TINY
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow


def step_seconds(groups: ProcessGroupCollection) -> float:
    return time_on_rank(read_environment(), groups, workload=TINY, micro_batches=3, repeats=1)


def test_a_step_runs_on_two_stages() -> None:
    by_rank = run_on_ranks(step_seconds, 2, parallel=ParallelConfig(pipeline=2))
    assert all(seconds > 0 for seconds in by_rank)


def test_the_ratio_accounts_for_the_bubble() -> None:
    # Of 8 micro-batches: 9 turns of half the work, 11 of a quarter.
    rows = table({1: 16.0, 2: 9.0, 4: 11.0}, micro_batches=8, flops=2_000)
    assert [row["expected ms"] for row in rows] == pytest.approx([16000, 9000, 5500])
    assert [row["ratio"] for row in rows] == pytest.approx([1, 1, 2])
    assert [row["processes"] for row in rows] == [1, 2, 4]
    assert {row["cores"] for row in rows} == {num_devices()}
    assert rows[0]["worst residual"] == pytest.approx(1 if num_devices() >= 4 else 0)


def test_the_timed_stages_cost_the_same() -> None:
    costs = layer_costs(WORKLOAD.model, WORKLOAD.seq_length)
    for num_stages in (2, 4):
        layout = ParallelConfig(pipeline=num_stages)
        stages = all_stages(WORKLOAD.model, layout, seq_length=WORKLOAD.seq_length)
        by_stage = [sum(costs[layer] for layer in stage.layers) for stage in stages]
        assert max(by_stage) * num_stages < 1.04 * sum(costs)
