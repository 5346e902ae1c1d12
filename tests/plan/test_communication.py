"""Counted communication against published formulas and the collectives of real steps."""

from dataclasses import replace

import pytest

from armd_scale.config.resolve import ResolvedRecipe, resolve_model
from armd_scale.config.schema import ModelConfig
from armd_scale.plan.communication import communication_volume, data_parallel_bytes
from armd_scale.plan.memory import chunk_parameters, chunks_by_rank
from tests.plan.estimates import load
from tests.plan.measure import data_parallel_bytes_sent, with_zero
from tests.support.recipes import SMALL_RESOLVED, bend
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow


def tensor_bytes(recipe: ResolvedRecipe) -> float:
    ((chunk,),) = chunks_by_rank(recipe)
    return communication_volume(recipe, [chunk], replicas=1, one_stream=True).tensor


def test_a_plain_stack_makes_four_all_reduces_per_layer() -> None:
    """Megatron-LM's count (arXiv 1909.08053, section 3), plus one each in embedding and head."""
    recipe = load("pretrain_1b", "parallel.tensor=2", "train.recompute=none")
    row = 8 * 2048 * 2048 * 2  # micro-batch x length x hidden x bytes
    assert tensor_bytes(recipe) == (20 * 4 + 1 + 1) * row
    # With sequence parallelism each is a gather and a scatter; one gather per layer is repeated.
    parallel = replace(recipe.parallel, sequence=True)
    assert tensor_bytes(replace(recipe, parallel=parallel)) == (20 * 9 + 1 + 2) * row / 2


def test_pipelines_send_two_streams_below_and_one_above() -> None:
    recipe = load("pretrain_7b", "parallel.virtual_pipeline=1", "parallel.pipeline=4")
    by_rank = chunks_by_rank(recipe)
    sent = [
        communication_volume(recipe, chunks, replicas=1, one_stream=False).pipeline
        for chunks in by_rank
    ]
    row = 4096 * 4096 * 2 / 4
    last_layers = [chunks[0].layers[-1] for chunks in by_rank]
    leaving = [2 if layer < 15 else 1 for layer in last_layers[:-1]] + [0]
    expected = [(out + into) * row for out, into in zip(leaving, [0, *leaving], strict=False)]
    assert sent == expected


# Matrices of more than 100,000 elements: DeepSpeed's stage 3 never splits smaller parameters.
MODEL = resolve_model(
    ModelConfig(layers=2, hidden=384, ffn_hidden=512, heads=6, vocab_size=512, two_stream_layers=1)
)
MEASURED = bend(
    SMALL_RESOLVED,
    {"model": MODEL, "data.seq_length": 32, "train.micro_batch": 1, "train.global_batch": 6},
)


def test_data_parallel_bytes_are_those_that_a_step_sends() -> None:
    """Three micro-batches per rank: stages 2 and 3 reduce gradients after each of them."""
    recipes = [with_zero(MEASURED, stage, "fp32") for stage in (0, 1, 2, 3)]
    for sent in run_on_ranks(data_parallel_bytes_sent, 2, recipes):
        for recipe, num_bytes in zip(recipes, sent, strict=True):
            ((chunk,),) = chunks_by_rank(recipe)
            counted = data_parallel_bytes(recipe, chunk_parameters(recipe, chunk), 2)
            assert num_bytes == pytest.approx(counted, rel=0.01), recipe.optim.zero_stage


def test_gradients_are_reduced_once_a_step_or_once_a_micro_batch() -> None:
    def passes(stage: int, **changes: object) -> float:
        recipe = bend(MEASURED, {"optim.zero_stage": stage, **changes})
        return data_parallel_bytes(recipe, 1000, 2) / (4 * 1000 / 2)

    assert [passes(stage) for stage in (0, 1, 2, 3)] == [2, 3, 3 * 2 + 1, 3 + 3]
    # With a pipeline or an offloaded optimizer, gradients wait for the last micro-batch.
    assert passes(2, **{"parallel.pipeline": 2}) == passes(1)
    assert passes(2, **{"optim.offload": "optimizer"}) == passes(1)


def test_zero_3_gathers_large_models_again_for_the_backward_pass() -> None:
    recipe = bend(MEASURED, {"optim.zero_stage": 3})
    small, large = (
        data_parallel_bytes(recipe, count, 2) / (4 * count / 2)
        for count in (500_000_000, 5_000_000_000)
    )
    assert small == 3 * (1 + 1)
    assert large == pytest.approx(3 * (1 + 1.9))
