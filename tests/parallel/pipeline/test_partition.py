"""Partition of layers over pipeline stages, balanced by cost, and the pipeline bubble."""

import dataclasses
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.config.flops import head_flops, layer_flops
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.parallel.pipeline.partition import (
    PipelineStage,
    all_stages,
    balance_partition,
    bubble_fraction,
    format_partition,
    layer_costs,
    single_stage,
    stages_of_rank,
)

MODEL = resolve_model(
    ModelConfig(
        layers=24, hidden=512, ffn_hidden=2048, heads=8, vocab_size=1024, two_stream_layers=12
    )
)
PLAIN = dataclasses.replace(MODEL, two_stream_layers=0)
LAYOUTS = [
    ParallelConfig(pipeline=pipeline, virtual_pipeline=chunks)
    for pipeline, chunks in ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (4, 3), (8, 3), (24, 1))
]


def part_costs(costs, boundaries):
    """Return the cost of each part."""
    return [sum(costs[a:b]) for a, b in pairwise([0, *boundaries, len(costs)])]


@st.composite
def costs_and_num_parts(draw):
    costs = draw(st.lists(st.integers(1, 50), min_size=1, max_size=9))
    return costs, draw(st.integers(1, len(costs)))


@given(costs_and_num_parts())
def test_no_other_partition_has_a_smaller_maximum(case):
    costs, count = case
    boundaries = balance_partition(costs, count)
    assert len(boundaries) == count - 1
    assert all(a < b for a, b in pairwise([0, *boundaries, len(costs)])), "no part is empty"
    candidates = combinations(range(1, len(costs)), count - 1)
    smallest = min(max(part_costs(costs, other)) for other in candidates)
    assert max(part_costs(costs, boundaries)) == smallest


def test_more_parts_than_layers_fails_an_assertion():
    with pytest.raises(AssertionError):
        balance_partition([1, 2], 3)


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
@pytest.mark.parametrize("model", [MODEL, PLAIN], ids=["two streams", "plain"])
def test_stages_cover_the_layers_in_order(model, parallel):
    stages = all_stages(model, parallel, seq_length=256)
    count = parallel.pipeline * parallel.virtual_pipeline
    assert [layer for stage in stages for layer in stage.layers] == list(range(model.layers))
    assert all(len(stage.layers) > 0 for stage in stages)
    assert [stage.is_first for stage in stages] == [True] + [False] * (count - 1)
    assert [stage.is_last for stage in stages] == [False] * (count - 1) + [True]


def test_without_pipeline_parallelism_there_is_a_single_stage():
    assert all_stages(MODEL, ParallelConfig(), seq_length=256) == [single_stage(MODEL)]


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_chunk_v_of_rank_r_is_stage_v_times_pipeline_plus_r(parallel):
    stages = all_stages(MODEL, parallel, seq_length=256)
    for rank in range(parallel.pipeline):
        chunks = stages_of_rank(MODEL, parallel, seq_length=256, rank=rank)
        assert len(chunks) == parallel.virtual_pipeline
        for index, chunk in enumerate(chunks):
            assert chunk == stages[index * parallel.pipeline + rank]


def test_the_head_is_added_to_the_cost_of_the_last_layer():
    costs = layer_costs(MODEL, 256)
    layers = layer_flops(MODEL, 256)
    assert costs[:-1] == list(layers[:-1])
    assert costs[-1] == layers[-1] + head_flops(MODEL, 1024)
    assert sum(costs) == sum(layers) + head_flops(MODEL, 1024)


def test_lower_stages_with_two_streams_hold_fewer_layers():
    parallel = ParallelConfig(pipeline=2)
    lower, upper = (len(stage.layers) for stage in all_stages(MODEL, parallel, seq_length=256))
    # The last two-stream layer is cheap, so 11 layers cost nearly 2 units each, the other 13 cost 1
    # each: about 35 units in all. Nine of the first layers have about half of that.
    assert (lower, upper) == (9, 15)
    plain = [len(stage.layers) for stage in all_stages(PLAIN, parallel, seq_length=256)]
    assert plain == [12, 12]


def test_an_expensive_head_takes_layers_from_the_last_stage():
    wide = dataclasses.replace(PLAIN, vocab_size=65536)
    parallel = ParallelConfig(pipeline=2)
    lower, upper = (len(stage.layers) for stage in all_stages(wide, parallel, seq_length=256))
    assert lower > 12 > upper


@pytest.mark.parametrize("pipeline", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 8, 100])
def test_bubble_of_equal_stages(pipeline, micro_batches):
    bubble = bubble_fraction([7] * pipeline, ParallelConfig(pipeline=pipeline), micro_batches)
    assert bubble == pytest.approx((pipeline - 1) / (micro_batches + pipeline - 1))


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_interleaving_divides_the_fill_time_by_the_number_of_chunks(chunks):
    parallel = ParallelConfig(pipeline=4, virtual_pipeline=chunks)
    bubble = bubble_fraction([7] * 4 * chunks, parallel, 16)
    assert bubble == pytest.approx((3 / chunks) / (16 + 3 / chunks))
    assert bubble < bubble_fraction([7 * chunks] * 4, ParallelConfig(pipeline=4), 16)


def test_the_most_expensive_stage_sets_the_pace():
    parallel = ParallelConfig(pipeline=2)
    assert bubble_fraction([1, 3], parallel, 10) == pytest.approx(1 - 10 * 4 / (2 * 31))
    # With very many micro-batches only the imbalance is left.
    assert bubble_fraction([1, 3], parallel, 10**9) == pytest.approx(1 - 4 / (2 * 3))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 64))
def test_the_bubble_is_a_fraction_that_falls_with_the_number_of_micro_batches(costs, micro_batches):
    parallel = ParallelConfig(pipeline=len(costs))
    bubble = bubble_fraction(costs, parallel, micro_batches)
    assert -1e-12 <= bubble < 1
    assert bubble_fraction(costs, parallel, 2 * micro_batches) <= bubble + 1e-12


def test_the_log_line_names_layers_shares_and_bubble():
    parallel = ParallelConfig(pipeline=2)
    stages = all_stages(PLAIN, parallel, seq_length=256)
    line = format_partition(stages, [1] * 24, parallel=parallel, num_micro_batches=7)
    assert line == (
        "stage 0: layers 0-11 (50 % of the work); stage 1: layers 12-23 (50 % of the work); "
        "bubble 12.5 %"
    )


def test_the_log_line_groups_interleaved_chunks_by_rank():
    parallel = ParallelConfig(pipeline=2, virtual_pipeline=2)
    layers = [range(0, 1), range(1, 2), range(2, 3), range(3, 5)]
    stages = [PipelineStage(span, span[0] == 0, span[-1] == 4) for span in layers]
    costs = [30, 20, 20, 20, 10]
    line = format_partition(stages, costs, parallel=parallel, num_micro_batches=4)
    bubble = 100 * bubble_fraction([30, 20, 20, 30], parallel, 4)
    assert line == (
        "stage 0: layers 0, 2 (50 % of the work); stage 1: layers 1, 3-4 (50 % of the work); "
        f"bubble {bubble:.1f} %"
    )


def test_a_single_stage_has_no_bubble():
    line = format_partition(
        [single_stage(PLAIN)],
        layer_costs(PLAIN, 256),
        parallel=ParallelConfig(),
        num_micro_batches=3,
    )
    assert line == "stage 0: layers 0-23 (100 % of the work); bubble 0.0 %"
