"""One forward pass computes the chain rule over blocks, and left to right the AR loss."""

import dataclasses

import numpy as np
import pytest
import torch

from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from tests.support.networks import LLAMA, OTHERS, SHAPES, batch_of, build
from tests.support.oracle import Oracle
from tests.support.windows import VOCAB, Windows, draw_windows, logits_by_index

QUERIES = ["anchor", "prefix", "learned", "anchor+prefix"]
BLOCKS = ["strided:3", "permuted_groups:3", "diffusion:4", "given"]
DOCUMENTS = [(16,), (4, 1, 8, 3)]


def label_nll(logits: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    picked = logits.log_softmax(-1).gather(-1, torch.from_numpy(labels).unsqueeze(-1))
    return -picked.squeeze(-1)


def summed_nll(network: ArmdModel, batch: ArmdBatch) -> torch.Tensor:
    return network(batch).double().where(batch.is_target, 0.0).sum()


def make_truncated_batch(windows: Windows, tokens: np.ndarray, last_block: int) -> ArmdBatch:
    """Return one window without the tokens of blocks after `last_block`; positions are kept."""
    assert len(windows.block) == 1
    kept = np.flatnonzero(windows.block[0] <= last_block)
    lengths = np.bincount(windows.document[kept])
    short = batch_of(
        tokens[:, kept], windows.block[:, kept], [tuple(int(length) for length in lengths)]
    )
    position = torch.from_numpy(windows.position[kept])[short.order]
    # Index of each anchor in the truncated window, from which its original position is read.
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)[:-1]]))
    document = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))[short.order[:, 1:]]
    anchor = starts[document] + short.label_positions - 1 - short.anchor_gaps
    anchor_position = torch.from_numpy(windows.position[kept])[anchor]
    label_positions = position[:, 1:].clamp(min=1)
    return dataclasses.replace(
        short,
        positions=position[:, :-1],
        label_positions=label_positions,
        anchor_gaps=label_positions - 1 - anchor_position,
        is_left_to_right=False,
    )


def block_nll(network: ArmdModel, windows: Windows, block: int, *, truncate: bool) -> torch.Tensor:
    """Return the nats of one block from a pass whose tokens of this and later blocks are random.

    With `truncate` the tokens of later blocks are removed instead.
    """
    hidden = windows.block >= block
    garbage = np.random.default_rng(block).integers(0, VOCAB, size=hidden.shape)
    tokens = np.where(hidden, garbage, windows.tokens)
    in_block = torch.from_numpy(windows.block == block)
    if not truncate:
        logits = logits_by_index(network, windows.batch(tokens))
        return label_nll(logits, windows.tokens)[in_block].double().sum()
    kept = windows.block[0] <= block
    logits = logits_by_index(network, make_truncated_batch(windows, tokens, block))
    return label_nll(logits, windows.tokens[:, kept])[in_block[:, kept]].double().sum()


def assert_one_pass_equals_block_passes(network, windows, tolerance):
    with torch.no_grad():
        expected = summed_nll(network, windows.batch())
        for truncate in (False, True):
            blocks = range(1, windows.block.max() + 1)
            block_nlls = [block_nll(network, windows, t, truncate=truncate) for t in blocks]
            torch.testing.assert_close(sum(block_nlls), expected, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("lengths", DOCUMENTS)
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("order", BLOCKS)
def test_one_pass_equals_one_pass_per_block(groups, order, query, upper, lengths):
    model = dataclasses.replace(LLAMA, query=query, upper_visibility=upper)
    network = build(model, groups, dtype=torch.float64)
    assert_one_pass_equals_block_passes(network, draw_windows(order, lengths, count=1), 1e-10)


@pytest.mark.parametrize("order", [*BLOCKS, "l2r", "random"])
def test_one_pass_equals_one_pass_per_block_in_float32(groups, order):
    network = build(LLAMA, groups)
    assert_one_pass_equals_block_passes(network, draw_windows(order, (16,), count=1), 1e-5)


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("two_stream_layers", [1, 3])
def test_one_pass_equals_one_pass_per_block_for_other_architectures(
    groups, model, two_stream_layers
):
    model = dataclasses.replace(model, two_stream_layers=two_stream_layers)
    network = build(model, groups, dtype=torch.float64)
    assert_one_pass_equals_block_passes(network, draw_windows("given", (4, 9), count=1), 1e-10)


def loss_and_gradient(network, batch):
    network.zero_grad()
    loss = network(batch).where(batch.is_target, 0.0).sum() / batch.is_target.sum()
    loss.backward()
    gradient = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
    }
    return loss.detach(), gradient


def assert_same_loss(actual, expected):
    """Compare (loss, gradients); gradients that are not expected must be zero."""
    (loss, grads), (expected_loss, expected_grads) = actual, expected
    torch.testing.assert_close(loss, expected_loss, atol=1e-10, rtol=0)
    for name in grads.keys() - expected_grads.keys():
        assert not grads[name].any(), name
    for name, expected_grad in expected_grads.items():
        torch.testing.assert_close(
            grads[name], expected_grad, atol=1e-10, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("lengths", DOCUMENTS)
@pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES)
def test_left_to_right_with_anchor_equals_the_auto_regressive_loss(groups, model, lengths):
    network = build(model, groups, dtype=torch.float64)
    plain_model = dataclasses.replace(model, two_stream_layers=0)
    plain = build(plain_model, groups, dtype=torch.float64, seed=7)
    assert "query_start.gap.weight" not in dict(plain.named_parameters())
    shared = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(shared[name])
    windows = draw_windows("l2r", lengths)
    batch = windows.batch()
    assert batch.is_left_to_right
    expected = loss_and_gradient(plain, batch)

    assert_same_loss(loss_and_gradient(network, batch), expected)
    two_streams = dataclasses.replace(batch, is_left_to_right=False)
    assert not network.can_skip_content_stream(two_streams)
    assert_same_loss(loss_and_gradient(network, two_streams), expected)
    masked = dataclasses.replace(two_streams, is_plain_causal=False, document_rows=None)
    assert_same_loss(loss_and_gradient(network, masked), expected)

    oracle = Oracle(plain_model, dict(plain.named_parameters()))
    rows = [
        oracle.log_probs(*(torch.from_numpy(x) for x in (tokens, block, windows.document)))
        for tokens, block in zip(windows.tokens, windows.block, strict=True)
    ]
    log_probs = torch.stack([p for row in rows for p in row.values()])
    torch.testing.assert_close(-log_probs.mean().detach(), expected[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("query", ["prefix", "learned", "anchor+prefix"])
def test_other_query_starts_run_both_streams_left_to_right(groups, query):
    network = build(dataclasses.replace(LLAMA, query=query), groups, dtype=torch.float64)
    batch = draw_windows("l2r", (16,)).batch()
    assert not network.can_skip_content_stream(batch)
    two_streams = dataclasses.replace(
        batch, is_left_to_right=False, is_plain_causal=False, document_rows=None
    )
    torch.testing.assert_close(network(batch), network(two_streams), atol=1e-10, rtol=0)


def test_the_gap_embedding_has_no_effect_left_to_right(groups):
    network = build(LLAMA, groups, dtype=torch.float64)
    batch = dataclasses.replace(draw_windows("l2r", (16,)).batch(), is_left_to_right=False)
    before = network(batch)
    with torch.no_grad():
        network.get_parameter("query_start.gap.weight").normal_()
    assert torch.equal(network(batch), before)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_gives_the_same_loss_and_gradient(groups, recompute):
    network = build(LLAMA, groups, dtype=torch.float64)
    batch = draw_windows("strided:3", (16,)).batch()
    expected = loss_and_gradient(network, batch)
    network.recompute = recompute
    assert_same_loss(loss_and_gradient(network, batch), expected)
