"""Numbers that follow from a recipe, against counts and figures from elsewhere."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.config import derived as derive
from armd_scale.config.schema import ModelConfig, OptimConfig, ParallelConfig
from tests.support.recipes import SMALL, bend

GPT2 = {
    "norm": "layernorm",
    "activation": "gelu_tanh",
    "position_embedding": "learned_absolute",
    "max_positions": 1024,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
}


def model(layers: int, hidden: int, ffn_hidden: int, heads: int, **more: Any) -> ModelConfig:
    return ModelConfig(layers=layers, hidden=hidden, ffn_hidden=ffn_hidden, heads=heads, **more)


GPT2_SMALL = model(12, 768, 3072, 12, **GPT2)
GPT2_MEDIUM = model(24, 1024, 4096, 16, **GPT2)
QWEN2_HALF_B = model(24, 896, 4864, 14, kv_heads=2, attention_bias=True)
QWEN3_2B = model(28, 2048, 6144, 16, kv_heads=8, head_dim=128, qk_norm="head")
LLAMA3_8B = model(32, 4096, 14336, 32, kv_heads=8, tie_embeddings=False)


# Counts of the same configurations in transformers, which have no query start.
@pytest.mark.parametrize(
    ("config", "vocab_size", "count"),
    [
        (GPT2_SMALL, 50257, 124_439_808),
        (QWEN2_HALF_B, 151936, 494_032_768),
        (QWEN3_2B, 151936, 1_720_574_976),
        (LLAMA3_8B, 128256, 8_030_261_248),
    ],
)
def test_weights_are_those_of_the_auto_regressive_model(
    config: ModelConfig, vocab_size: int, count: int
) -> None:
    query_start = derive.num_query_init_parameters(config, 1024)
    assert derive.num_parameters(config, vocab_size) - query_start == count


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("anchor", 65 * 32),
        ("prefix", 17 * 128 + 32),
        ("learned", 32),
        ("anchor+prefix", 65 * 32 + 17 * 128 + 32),
    ],
)
def test_weights_of_the_query_start(query: Any, count: int) -> None:
    config = model(2, 32, 64, 4, query=query)
    assert derive.num_query_init_parameters(config, 17) == count
    given_rows = derive.num_parameters(replace(config, max_positions=17), 100)
    assert derive.num_parameters(config, 100, max_positions=17) == given_rows


def test_a_head_of_its_own_and_every_bias_are_counted() -> None:
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


# Matrix products of an ARMD with two streams in half of the layers, against the auto-regressive
# model. `published` are the project's figures, which let the content stream compute its output in
# every two-stream layer; `ours` leave out the last one, which nothing reads.
@pytest.mark.parametrize(
    ("config", "vocab_size", "seq_length", "published", "ours"),
    [
        (GPT2_SMALL, 50257, 1024, 1.30, 1.251),
        (GPT2_MEDIUM, 50257, 1024, 1.37, 1.335),
        (QWEN3_2B, 151936, 2048, 1.39, 1.356),
        (LLAMA3_8B, 128256, 2048, 1.45, 1.421),
    ],
)
def test_cost_of_the_second_stream(
    config: ModelConfig, vocab_size: int, seq_length: int, published: float, ours: float
) -> None:
    plain = replace(config, two_stream_layers=0)
    one_stream = derive.forward_flops_per_token(plain, seq_length, vocab_size)
    both = derive.forward_flops_per_token(config, seq_length, vocab_size)
    assert both / one_stream == pytest.approx(ours, abs=5e-4)
    last_output = derive.row_flops(config, seq_length).output
    assert (both + last_output) / one_stream == pytest.approx(published, abs=0.01)


def test_one_stream_costs_two_operations_a_weight_and_attention() -> None:
    config = model(4, 32, 64, 4, kv_heads=2, two_stream_layers=0)
    norms = 9 * 32
    weights = derive.num_parameters(config, 100) - norms
    attention = 4 * 2 * 32 * 50
    got = derive.forward_flops_per_token(config, 50, 100)
    assert got == 2 * weights + attention
    assert derive.model_flops_per_token(config, 50, 100) == 3 * got


def test_one_two_stream_layer_is_free_and_all_of_them_nearly_double() -> None:
    def flops(layers: int, **more: Any) -> int:
        config = model(4, 32, 64, 4, two_stream_layers=layers, **more)
        return derive.forward_flops_per_token(config, 50, 100)

    output = derive.row_flops(model(4, 32, 64, 4), 50).output
    assert flops(1) == flops(0)
    assert flops(4) == flops(0) + 3 * output
    assert flops(2, query="prefix") == flops(2) + 50 * (128 + 32)


def test_defaults_are_resolved() -> None:
    config = model(5, 32, 64, 4)
    resolved = derive.head_dim(config), derive.kv_heads(config), derive.two_stream_layers(config)
    assert resolved == (8, 4, 2)
    given_values = replace(config, head_dim=6, kv_heads=1, two_stream_layers=0)
    resolved = [
        count(given_values)
        for count in (derive.head_dim, derive.kv_heads, derive.two_stream_layers)
    ]
    assert resolved == [6, 1, 0]
    assert derive.max_positions(SMALL) == 65
    assert derive.max_positions(bend(SMALL, {"model.max_positions": 80})) == 80


@given(st.integers(1, 300_000), st.integers(1, 48))
def test_padding_is_enough_even_and_small(vocab_size: int, tensor: int) -> None:
    padded = derive.padded_vocab_size(vocab_size, tensor)
    assert 0 <= padded - vocab_size < 64 * tensor
    assert padded % tensor == padded % 64 == 0


def test_padding_is_the_same_for_usual_layouts() -> None:
    assert {derive.padded_vocab_size(50257, tensor) for tensor in (1, 2, 4, 8, 16)} == {50304}


def test_batches() -> None:
    parallel = ParallelConfig(tensor=2, pipeline=4)
    assert derive.data_parallel_size(parallel, 16) == 2
    assert derive.accumulation_steps(SMALL.train, 2) == 4
    assert derive.tokens_per_step(SMALL) == 16 * 64


def test_decay_is_a_tenth_of_the_run_unless_given() -> None:
    optim = OptimConfig(warmup_steps=0, schedule="wsd")
    assert derive.decay_steps(optim, SMALL.train) == 10
    assert derive.decay_steps(replace(optim, decay_steps=7), SMALL.train) == 7
    assert derive.decay_steps(optim, replace(SMALL.train, steps=3)) == 1
