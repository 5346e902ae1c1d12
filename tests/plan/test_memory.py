"""Counted model states against what ranks hold, and activations in flight in a pipeline."""

from dataclasses import replace

import pytest

from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.plan.memory import memory_by_stage, peak_in_flight_activations
from tests.plan.measure import state_bytes, with_zero
from tests.support.recipes import SMALL_RESOLVED, bend
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow(minutes=2)

MODEL = resolve_model(
    ModelConfig(
        layers=4,
        hidden=64,
        ffn_hidden=160,
        heads=4,
        kv_heads=2,
        vocab_size=509,
        two_stream_layers=2,
    )
)
RECIPE = bend(
    SMALL_RESOLVED,
    {"model": MODEL, "data.seq_length": 32, "train.micro_batch": 1, "train.global_batch": 8},
)
FP32 = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3)]
# Stage 2 with and without a pipeline: whole gradients with one, a shard of them without.
GRID = {
    "DP4": (4, ParallelConfig(), [*FP32, ("bf16", 1)]),
    "TP2": (2, ParallelConfig(tensor=2, sequence=True), FP32[:2]),
    "PP2": (2, ParallelConfig(pipeline=2), FP32[:2]),
    "PP2xDP2": (4, ParallelConfig(pipeline=2), FP32[2:3]),
    "TP2xDP2": (4, ParallelConfig(tensor=2), [("fp32", 1), ("bf16", 2), ("bf16", 3)]),
}


@pytest.mark.parametrize("name", GRID)
def test_weights_gradients_and_optimizer_are_what_every_rank_holds(name: str) -> None:
    size, parallel, cases = GRID[name]
    recipes = [with_zero(replace(RECIPE, parallel=parallel), stage, kind) for kind, stage in cases]
    measured = run_on_ranks(state_bytes, size, recipes, parallel=parallel)
    for index, recipe in enumerate(recipes):
        counted = [memory.model_state for memory in memory_by_stage(recipe, size)]
        for rank in range(size):
            # Ranks of one pipeline stage are neighbors.
            stage = rank * parallel.pipeline // size
            assert measured[rank][index] == pytest.approx(counted[stage], rel=0.1), recipe.optim


@pytest.mark.parametrize("rank", range(4))
def test_a_stage_holds_one_micro_batch_for_itself_and_each_later_stage(rank: int) -> None:
    recipe = bend(RECIPE, {"parallel.pipeline": 4})

    def peak(micro_batches: int) -> float:
        return peak_in_flight_activations(
            recipe, rank=rank, micro_batches=micro_batches, chunk_bytes=[1.0]
        )

    assert peak(8) == 4 - rank
    assert peak(2) == min(2, 4 - rank)


def test_an_interleaved_pipeline_holds_more_chunks_of_smaller_size() -> None:
    """Megatron-LM's bound (arXiv 2205.05198, section 4.2.3): 1 + (p - 1) / (p m) of the layers."""
    recipe = bend(RECIPE, {"parallel.pipeline": 4, "parallel.virtual_pipeline": 2})
    peak = peak_in_flight_activations(recipe, rank=0, micro_batches=16, chunk_bytes=[1.0, 1.0])
    assert peak == 4 * 2 * (1 + 3 / 8)


def test_offload_and_weight_average_change_the_optimizer_state() -> None:
    plain = memory_by_stage(RECIPE, 1)[0]
    offloaded = memory_by_stage(bend(RECIPE, {"optim.offload": "optimizer"}), 1)[0]
    averaged = memory_by_stage(bend(RECIPE, {"optim.ema_decay": 0.999}), 1)[0]
    assert offloaded.optimizer == 0
    assert averaged.optimizer - plain.optimizer == plain.weights
