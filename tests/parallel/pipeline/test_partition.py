"""Layers over pipeline stages: in order, complete, divided by cost; the bubble that follows."""

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


def runs(costs, cuts):
    """What each run between the cuts costs."""
    return [sum(costs[a:b]) for a, b in pairwise([0, *cuts, len(costs)])]


@st.composite
def sequences_and_counts(draw):
    costs = draw(st.lists(st.integers(1, 50), min_size=1, max_size=9))
    return costs, draw(st.integers(1, len(costs)))


@given(sequences_and_counts())
def test_no_other_cut_has_a_cheaper_costliest_run(case):
    costs, count = case
    cuts = balance_partition(costs, count)
    assert len(cuts) == count - 1
    assert all(a < b for a, b in pairwise([0, *cuts, len(costs)])), "every run holds something"
    every = combinations(range(1, len(costs)), count - 1)
    assert max(runs(costs, cuts)) == min(max(runs(costs, other)) for other in every)


def test_more_runs_than_layers_is_our_mistake():
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


def test_one_stage_is_the_whole_network():
    assert all_stages(MODEL, ParallelConfig(), seq_length=256) == [single_stage(MODEL)]


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_chunk_v_of_rank_r_is_stage_v_times_pipeline_plus_r(parallel):
    stages = all_stages(MODEL, parallel, seq_length=256)
    for rank in range(parallel.pipeline):
        chunks = stages_of_rank(MODEL, parallel, seq_length=256, rank=rank)
        assert len(chunks) == parallel.virtual_pipeline
        for number, chunk in enumerate(chunks):
            assert chunk == stages[number * parallel.pipeline + rank]


def test_costs_are_the_layers_and_the_head():
    costs = layer_costs(MODEL, 256)
    layers = layer_flops(MODEL, 256)
    assert costs[:-1] == list(layers[:-1])
    assert costs[-1] == layers[-1] + head_flops(MODEL, 1024)
    assert sum(costs) == sum(layers) + head_flops(MODEL, 1024)


def test_lower_stages_hold_fewer_layers_where_they_run_two_streams():
    parallel = ParallelConfig(pipeline=2)
    lower, upper = (len(stage.layers) for stage in all_stages(MODEL, parallel, seq_length=256))
    # Eleven layers cost nearly twice the other thirteen, which with the head makes 35 in all: nine
    # of the first have about half of it.
    assert (lower, upper) == (9, 15)
    plain = [len(stage.layers) for stage in all_stages(PLAIN, parallel, seq_length=256)]
    assert plain == [12, 12]


def test_a_heavy_head_takes_layers_from_the_last_stage():
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
def test_interleaving_divides_the_fill_by_the_chunks(chunks):
    parallel = ParallelConfig(pipeline=4, virtual_pipeline=chunks)
    bubble = bubble_fraction([7] * 4 * chunks, parallel, 16)
    assert bubble == pytest.approx((3 / chunks) / (16 + 3 / chunks))
    assert bubble < bubble_fraction([7 * chunks] * 4, ParallelConfig(pipeline=4), 16)


def test_the_costliest_stage_sets_the_pace():
    parallel = ParallelConfig(pipeline=2)
    assert bubble_fraction([1, 3], parallel, 10) == pytest.approx(1 - 10 * 4 / (2 * 31))
    # With ever more micro-batches only the imbalance is left.
    assert bubble_fraction([1, 3], parallel, 10**9) == pytest.approx(1 - 4 / (2 * 3))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 64))
def test_a_bubble_is_a_share_that_falls_with_micro_batches(costs, micro_batches):
    parallel = ParallelConfig(pipeline=len(costs))
    bubble = bubble_fraction(costs, parallel, micro_batches)
    assert -1e-12 <= bubble < 1
    assert bubble_fraction(costs, parallel, 2 * micro_batches) <= bubble + 1e-12


def test_a_description_names_layers_shares_and_bubble():
    parallel = ParallelConfig(pipeline=2)
    stages = all_stages(PLAIN, parallel, seq_length=256)
    line = format_partition(stages, [1] * 24, parallel=parallel, micro_batches=7)
    assert line == (
        "stage 0: layers 0-11 (50 % of the work); stage 1: layers 12-23 (50 % of the work); "
        "bubble 12.5 %"
    )


def test_a_description_of_interleaved_chunks_goes_by_rank():
    parallel = ParallelConfig(pipeline=2, virtual_pipeline=2)
    layers = [range(0, 1), range(1, 2), range(2, 3), range(3, 5)]
    stages = [PipelineStage(held, held[0] == 0, held[-1] == 4) for held in layers]
    costs = [30, 20, 20, 20, 10]
    line = format_partition(stages, costs, parallel=parallel, micro_batches=4)
    bubble = 100 * bubble_fraction([30, 20, 20, 30], parallel, 4)
    assert line == (
        "stage 0: layers 0, 2 (50 % of the work); stage 1: layers 1, 3-4 (50 % of the work); "
        f"bubble {bubble:.1f} %"
    )


def test_a_network_that_is_not_split_has_no_bubble():
    line = format_partition(
        [single_stage(PLAIN)], layer_costs(PLAIN, 256), parallel=ParallelConfig(), micro_batches=3
    )
    assert line == "stage 0: layers 0-23 (100 % of the work); bubble 0.0 %"
