"""Planned memory against what ranks hold and what autograd keeps."""

from dataclasses import replace

import pytest

from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.plan.activations import chunk_activations
from armd_scale.plan.memory import chunks_by_rank, memory_by_stage, peak_in_flight_activations
from tests.plan.measure import kept_bytes, on, state_bytes
from tests.support.recipes import SMALL_RESOLVED, bend
from tests.support.spawn import run_on_ranks

MODEL = ModelConfig(
    layers=4, hidden=64, ffn_hidden=160, heads=4, kv_heads=2, vocab_size=509, two_stream_layers=2
)
RECIPE = bend(
    SMALL_RESOLVED,
    {"model": MODEL, "data.seq_length": 32, "train.micro_batch": 1, "train.global_batch": 8},
)
FP32 = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3)]
GRID = {
    "DP4": (4, ParallelConfig(), [*FP32, ("bf16", 1)]),
    "TP2": (2, ParallelConfig(tensor=2, sequence=True), FP32[:2]),
    "PP2": (2, ParallelConfig(pipeline=2), FP32[:2]),
    "TP2xDP2": (4, ParallelConfig(tensor=2), [("fp32", 1), ("bf16", 3)]),
}


@pytest.mark.parametrize("name", GRID)
def test_weights_gradients_and_optimizer_are_what_every_rank_holds(name: str) -> None:
    size, parallel, cases = GRID[name]
    recipes = [on(replace(RECIPE, parallel=parallel), stage, kind) for kind, stage in cases]
    held = run_on_ranks(state_bytes, size, recipes, parallel=parallel)
    for number, recipe in enumerate(recipes):
        planned = [memory.model_state for memory in memory_by_stage(recipe, size)]
        for rank in range(size):
            # Ranks of one pipeline stage are neighbours.
            stage = rank * parallel.pipeline // size
            assert held[rank][number] == pytest.approx(planned[stage], rel=0.1), recipe.optim


BENT = {
    "llama": {},
    "selective": {"train.recompute": "selective"},
    "full": {"train.recompute": "full"},
    "prefix": {"model.query": "prefix"},
    "heads of their own norm": {"model.qk_norm": "head", "model.norm": "layernorm"},
    "gpt2": {
        "model.norm": "layernorm", "model.activation": "gelu_tanh", "model.position_embedding": "learned_absolute",
        "model.attention_output_bias": True, "model.mlp_bias": True,
        "model.attention_bias": True,
    },
    "bf16": {"train.precision": "bf16", "model.norm": "layernorm"},
    "all layers two-stream": {"model.two_stream_layers": 4, "train.micro_batch": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", BENT)
def test_activations_are_what_autograd_keeps(name: str, groups) -> None:
    recipe = bend(RECIPE, {"data.seq_length": 64, **BENT[name]})
    ((chunk,),) = chunks_by_rank(recipe)
    kept = kept_bytes(groups, recipe)
    assert chunk_activations(recipe, chunk) == pytest.approx(kept, rel=0.25)


@pytest.mark.parametrize("sequence", [False, True])
def test_activations_are_shared_among_tensor_parallel_ranks(sequence: bool) -> None:
    parallel = ParallelConfig(tensor=2, sequence=sequence)
    recipe = bend(replace(RECIPE, parallel=parallel), {"data.seq_length": 64})
    ((chunk,),) = chunks_by_rank(recipe)
    for kept in run_on_ranks(kept_bytes, 2, recipe, parallel=parallel):
        assert chunk_activations(recipe, chunk) == pytest.approx(kept, rel=0.25)


def test_recomputing_keeps_less_and_works_with_more() -> None:
    none, selective, full = (
        memory_by_stage(bend(RECIPE, {"train.recompute": kind, "data.seq_length": 512}), 1)[0]
        for kind in ("none", "selective", "full")
    )
    assert none.activations > selective.activations > full.activations
    assert full.workspace >= selective.workspace
    assert none.total > selective.total > full.total


@pytest.mark.parametrize("rank", range(4))
def test_a_pipeline_holds_one_micro_batch_for_every_stage_still_to_come(rank: int) -> None:
    recipe = bend(RECIPE, {"parallel.pipeline": 4})
    assert peak_in_flight_activations(recipe, rank=rank, micro_batches=8, kept=[1.0]) == 4 - rank
    assert peak_in_flight_activations(recipe, rank=rank, micro_batches=2, kept=[1.0]) == min(
        2, 4 - rank
    )


def test_an_interleaved_pipeline_holds_more_chunks_of_less() -> None:
    """Megatron-LM's bound (arXiv 2205.05198, section 4.2.3): 1 + (p - 1) / (p m) of the layers."""
    recipe = bend(RECIPE, {"parallel.pipeline": 4, "parallel.virtual_pipeline": 2})
    held = peak_in_flight_activations(recipe, rank=0, micro_batches=16, kept=[1.0, 1.0])
    assert held == 4 * 2 * (1 + 3 / 8)


def test_what_is_offloaded_or_averaged_moves_the_optimizer() -> None:
    plain = memory_by_stage(RECIPE, 1)[0]
    offloaded = memory_by_stage(bend(RECIPE, {"optim.offload": "optimizer"}), 1)[0]
    averaged = memory_by_stage(bend(RECIPE, {"optim.ema_decay": 0.999}), 1)[0]
    assert offloaded.optimizer == 0
    assert averaged.optimizer - plain.optimizer == plain.weights
