"""Parameters and FLOPs of built networks against the counts derived from a recipe."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from armd_scale.config import derived as derive
from armd_scale.config.flops import forward_flops_per_token
from tests.support.networks import LLAMA, SHAPES, build
from tests.support.windows import draw_windows

LENGTH = 17
MODELS = {**SHAPES, "prefix": dataclasses.replace(LLAMA, query="anchor+prefix")}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_parameter_count_equals_the_derived_count(groups, model):
    network = build(model, groups, max_positions=LENGTH)
    padded = derive.padded_vocab_size(model.vocab_size, 1)
    expected = derive.num_parameters(network.model, padded)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("two_stream_layers", [0, 2])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_flop_count_equals_the_derived_count(groups, model, two_stream_layers):
    model = dataclasses.replace(model, two_stream_layers=two_stream_layers)
    network = build(model, groups)
    batch = draw_windows("random", (LENGTH,)).batch()
    # The math kernel also computes the half of the scores that a causal kernel skips, so the
    # derived count is that of twice the length.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(batch)
    padded = derive.padded_vocab_size(model.vocab_size, 1)
    expected = forward_flops_per_token(network.model, 2 * (LENGTH - 1), padded)
    counted = counter.get_total_flops() / batch.labels.numel()
    assert counted == pytest.approx(expected, rel=0.02)
