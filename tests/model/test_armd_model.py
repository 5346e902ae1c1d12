"""The two-stream network against the dense oracle, forward and backward."""

import dataclasses

import numpy as np
import pytest
import torch

from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from tests.support.networks import LLAMA, OTHERS, SHAPES, batch_of, build, log_probs_by_position
from tests.support.oracle import Oracle

QUERIES = ["anchor", "prefix", "learned", "anchor+prefix"]
ORDERS = [
    "l2r",
    "progressive:6",
    "strided-ar:4",
    "strided:4",
    "random",
    "permuted_groups:3",
    "diffusion:5",
]
N = 18


def draw_samples(order, *, lengths=(N + 1,), seed=0, count=2):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 101, size=(count, sum(lengths)))
    spec = parse_spec(order)
    block = np.stack(
        [sample_blocks(spec, seed=seed, sample_index=i, lengths=lengths) for i in range(count)]
    )
    return tokens, block, [lengths] * count


def document_ids(lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def assert_equals_oracle(model, groups, order, lengths, dtype=torch.float64, atol=1e-10):
    network = build(model, groups, dtype=dtype)
    tokens, block, all_lengths = draw_samples(order, lengths=lengths)
    batch = batch_of(tokens, block, all_lengths)
    weights = {k: v.detach().clone().requires_grad_() for k, v in network.named_parameters()}
    oracle = Oracle(model, weights)
    expected = [
        oracle.log_probs(
            torch.from_numpy(tokens[b]), torch.from_numpy(block[b]), document_ids(lengths)
        )
        for b in range(len(tokens))
    ]
    actual = log_probs_by_position(network, batch)
    for sample, expected_sample in zip(actual, expected, strict=True):
        assert sample.keys() == expected_sample.keys()
        for p, log_prob in expected_sample.items():
            torch.testing.assert_close(sample[p], log_prob, atol=atol, rtol=0)
    for samples in (actual, expected):
        torch.stack(
            [log_prob for sample in samples for log_prob in sample.values()]
        ).sum().backward()
    for name, parameter in network.named_parameters():
        expected_grad = weights[name].grad
        if expected_grad is None:
            expected_grad = torch.zeros_like(parameter)
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            grad, expected_grad, atol=100 * atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("query", QUERIES)
def test_forward_and_backward_equal_the_oracle(groups, query, order):
    assert_equals_oracle(dataclasses.replace(LLAMA, query=query), groups, order, (N + 1,))


@pytest.mark.parametrize("order", ["l2r", "random", "strided:2"])
@pytest.mark.parametrize("shape", OTHERS)
def test_other_architectures_equal_the_oracle(groups, shape, order):
    assert_equals_oracle(SHAPES[shape], groups, order, (N + 1,))


@pytest.mark.parametrize("two_stream_layers", [1, 4])
def test_any_number_of_two_stream_layers(groups, two_stream_layers):
    model = dataclasses.replace(LLAMA, two_stream_layers=two_stream_layers)
    assert_equals_oracle(model, groups, "strided:3", (N + 1,))


@pytest.mark.parametrize("order", ["l2r", "random", "strided:2", "diffusion:3"])
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
def test_packed_documents_equal_the_oracle(groups, order, upper, query):
    model = dataclasses.replace(LLAMA, upper_visibility=upper, query=query)
    assert_equals_oracle(model, groups, order, (5, 1, 9, 4))


def test_float32_equals_the_oracle(groups):
    assert_equals_oracle(LLAMA, groups, "random", (N + 1,), dtype=torch.float32, atol=1e-5)
