"""Operations of the matrix products, against figures worked out by hand or published."""

from dataclasses import replace
from typing import Any

import pytest

from armd_scale.config import flops
from armd_scale.config.derived import num_parameters
from armd_scale.config.resolve import ResolvedModel
from tests.support.models import GPT2_MEDIUM, GPT2_SMALL, LLAMA3_8B, QWEN3_2B, model


# Matrix products of an ARMD with two streams in half of the layers, relative to the AR model.
# `published` are the project's figures, which let the content stream compute its output in every
# two-stream layer; `ours` leave out the last one, whose output nothing reads.
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
    config: ResolvedModel, vocab_size: int, seq_length: int, published: float, ours: float
) -> None:
    ar_model = replace(config, two_stream_layers=0)
    one_stream = flops.forward_flops_per_token(ar_model, seq_length, vocab_size)
    both = flops.forward_flops_per_token(config, seq_length, vocab_size)
    assert both / one_stream == pytest.approx(ours, abs=5e-4)
    last_output = flops.row_flops(config, seq_length).output
    assert (both + last_output) / one_stream == pytest.approx(published, abs=0.01)


def test_one_stream_costs_two_operations_per_weight_plus_attention() -> None:
    config = model(4, 32, 64, 4, kv_heads=2, two_stream_layers=0)
    norms = 9 * 32
    weights = num_parameters(config, 100) - norms
    attention = 4 * 2 * 32 * 50
    forward = flops.forward_flops_per_token(config, 50, 100)
    assert forward == 2 * weights + attention
    assert flops.model_flops_per_token(config, 50, 100) == 3 * forward


def test_one_two_stream_layer_costs_nothing_and_all_of_them_nearly_double() -> None:
    def forward(layers: int, **more: Any) -> int:
        config = model(4, 32, 64, 4, two_stream_layers=layers, **more)
        return flops.forward_flops_per_token(config, 50, 100)

    output = flops.row_flops(model(4, 32, 64, 4), 50).output
    assert forward(1) == forward(0)
    assert forward(4) == forward(0) + 3 * output
    assert forward(2, query="prefix") == forward(2) + 50 * (128 + 32)
