"""Parameter counts and sizes that follow from a recipe, against published counts."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.config import derived as derive
from armd_scale.config.resolve import ResolvedModel
from armd_scale.config.schema import ParallelConfig
from tests.support.models import GPT2_SMALL, LLAMA3_8B, QWEN2_HALF_B, QWEN3_2B, model
from tests.support.recipes import SMALL, bend


# Counts of the same configurations in transformers, which have no query initialization.
@pytest.mark.parametrize(
    ("config", "vocab_size", "count"),
    [
        (GPT2_SMALL, 50257, 124_439_808),
        (QWEN2_HALF_B, 151936, 494_032_768),
        (QWEN3_2B, 151936, 1_720_574_976),
        (LLAMA3_8B, 128256, 8_030_261_248),
    ],
)
def test_parameter_count_equals_the_ar_model_of_transformers(
    config: ResolvedModel, vocab_size: int, count: int
) -> None:
    query_init = derive.num_query_start_parameters(config)
    assert derive.num_parameters(config, vocab_size) - query_init == count


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("anchor", 65 * 32),
        ("prefix", 17 * 128 + 32),
        ("learned", 32),
        ("anchor+prefix", 65 * 32 + 17 * 128 + 32),
    ],
)
def test_parameter_count_of_the_query_initialization(query: Any, count: int) -> None:
    config = model(2, 32, 64, 4, query=query)
    assert derive.num_query_start_parameters(config) == count
    other = "anchor" if query == "learned" else "learned"
    same_stack = model(2, 32, 64, 4, query=other)
    difference = count - derive.num_query_start_parameters(same_stack)
    assert derive.num_parameters(config, 100) - derive.num_parameters(same_stack, 100) == difference


def test_an_ar_stack_has_no_gap_table() -> None:
    assert derive.num_query_start_parameters(model(2, 32, 64, 4, two_stream_layers=0)) == 0


def test_untied_head_biases_and_norms_are_counted() -> None:
    config = model(2, 32, 64, 4, kv_heads=2)
    count = derive.num_parameters(config, 100)
    assert derive.num_parameters(replace(config, tie_embeddings=False), 100) == count + 100 * 32
    qkv = 32 + 2 * 16
    biased = replace(config, attention_bias=True)
    assert derive.num_parameters(biased, 100) == count + 2 * qkv
    biased = replace(config, attention_output_bias=True)
    assert derive.num_parameters(biased, 100) == count + 2 * 32
    biased = replace(config, mlp_bias=True)
    assert derive.num_parameters(biased, 100) == count + 2 * (2 * 64 + 32)
    normed = replace(config, qk_norm="head")
    assert derive.num_parameters(normed, 100) == count + 2 * 2 * 8
    normed = replace(config, qk_norm="projection")
    assert derive.num_parameters(normed, 100) == count + 2 * (32 + 16)
    normed = replace(config, norm="layernorm")
    assert derive.num_parameters(normed, 100) == count + 5 * 32


@given(st.integers(1, 300_000), st.integers(1, 48))
def test_padded_vocabulary_is_divisible_and_at_most_one_multiple_larger(
    vocab_size: int, tensor: int
) -> None:
    padded = derive.padded_vocab_size(vocab_size, tensor)
    assert 0 <= padded - vocab_size < 64 * tensor
    assert padded % tensor == padded % 64 == 0


def test_padded_vocabulary_is_the_same_for_usual_tensor_parallel_sizes() -> None:
    assert {derive.padded_vocab_size(50257, tensor) for tensor in (1, 2, 4, 8, 16)} == {50304}


def test_batch_sizes() -> None:
    parallel = ParallelConfig(tensor=2, pipeline=4)
    assert derive.data_parallel_size(parallel, 16) == 2
    assert derive.accumulation_steps(SMALL.train, 2) == 4
    assert derive.tokens_per_step(SMALL) == 16 * 64


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optim.zero_stage": 1}, False),
        ({"optim.zero_stage": 2}, True),
        ({"optim.zero_stage": 3}, True),
        ({"optim.zero_stage": 2, "parallel.pipeline": 2}, False),
        ({"optim.zero_stage": 2, "optim.offload": "optimizer"}, False),
    ],
)
def test_gradients_are_reduced_every_micro_batch_from_zero_2_on_without_a_pipeline(
    changes: dict[str, Any], expected: bool
) -> None:
    recipe = bend(SMALL, changes)
    reduces = derive.reduces_every_micro_batch(recipe.optim, pipeline_size=recipe.parallel.pipeline)
    assert reduces is expected
