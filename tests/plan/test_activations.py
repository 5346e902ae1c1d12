"""Counted activations against what autograd keeps."""

from dataclasses import replace

import pytest

from armd_scale.config.schema import ParallelConfig
from armd_scale.plan.activations import chunk_activations
from armd_scale.plan.memory import chunks_by_rank, memory_by_stage
from tests.plan.measure import kept_bytes
from tests.plan.test_memory import RECIPE
from tests.support.recipes import bend
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow

VARIANTS = {
    "llama": {},
    "selective": {"train.recompute": "selective"},
    "full": {"train.recompute": "full"},
    "prefix": {"model.query": "prefix"},
    "norm on heads": {"model.qk_norm": "head", "model.norm": "layernorm"},
    "gpt2": {
        "model.norm": "layernorm", "model.activation": "gelu_tanh",
        "model.position_embedding": "learned_absolute",
        "model.attention_output_bias": True, "model.mlp_bias": True,
        "model.attention_bias": True,
    },
    "bf16": {"train.precision": "bf16", "model.norm": "layernorm"},
    "all layers two-stream": {"model.two_stream_layers": 4, "train.micro_batch": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_what_autograd_keeps(name: str, groups) -> None:
    recipe = bend(RECIPE, {"data.seq_length": 64, **VARIANTS[name]})
    ((chunk,),) = chunks_by_rank(recipe)
    kept = kept_bytes(groups, recipe)
    assert chunk_activations(recipe, chunk) == pytest.approx(kept, rel=0.25)


@pytest.mark.parametrize("sequence", [False, True])
def test_activations_are_split_among_tensor_parallel_ranks(sequence: bool) -> None:
    parallel = ParallelConfig(tensor=2, sequence=sequence)
    recipe = bend(replace(RECIPE, parallel=parallel), {"data.seq_length": 64})
    ((chunk,),) = chunks_by_rank(recipe)
    for kept in run_on_ranks(kept_bytes, 2, recipe, parallel=parallel):
        assert chunk_activations(recipe, chunk) == pytest.approx(kept, rel=0.25)


def test_recomputation_keeps_less_and_needs_more_workspace() -> None:
    none, selective, full = (
        memory_by_stage(bend(RECIPE, {"train.recompute": kind, "data.seq_length": 512}), 1)[0]
        for kind in ("none", "selective", "full")
    )
    assert none.activations > selective.activations > full.activations
    assert full.workspace >= selective.workspace
    assert none.total > selective.total > full.total
