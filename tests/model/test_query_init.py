"""The start of a query row, against the sums that define it."""

import dataclasses

import pytest
import torch

from armd_scale.model.attention_mask import IntervalMask
from armd_scale.model.weight_init import init_weights
from tests.support.networks import GPT2, LLAMA, build
from tests.support.windows import draw_windows

LENGTHS = (4, 1, 14)
ORDERS = ["random", "strided:3", "given"]


def starts(network, batch):
    """G^0 before any position is added, and the mask it was computed under."""
    mask = IntervalMask(batch.query.start, batch.query.stop, num_keys=batch.tokens.shape[1])
    content = network.embedding(batch.tokens).transpose(0, 1)
    anchors = network.embedding(batch.anchor_tokens).transpose(0, 1)
    return network.query_start(batch, content=content, anchors=anchors, mask=mask)


def expected_starts(network, windows, kind):
    """By index in the window: (sample, index, vector)."""
    table, document = network.embedding.weight, windows.document
    start = network.query_start
    for b, (tokens, block) in enumerate(zip(windows.tokens, windows.block, strict=True)):
        for p in block.nonzero()[0]:
            visible = [j for j in range(len(block)) if document[j] == document[p]]
            visible = [j for j in visible if block[j] < block[p]]
            total = torch.zeros_like(table[0])
            if "anchor" in kind:
                anchor = max(j for j in visible if j < p)
                gap = min(p - 1 - anchor, network.model.max_anchor_gap)
                total = total + table[tokens[anchor]]
                total = total + (start.gap.weight[gap] if gap else 0)
            if "prefix" in kind:
                place = start.prefix.position_embedding[windows.position]
                weights = place[p] @ place[visible].T
                mean = weights @ table[tokens[visible]] / len(visible)
                total = total + start.prefix.scale * mean
            if "learned" in kind:
                total = total + start.vector
            yield b, p, total


@pytest.mark.parametrize("max_anchor_gap", [2, 64])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("query", ["anchor", "prefix", "learned", "anchor+prefix"])
def test_starts_by_definition(groups, query, order, max_anchor_gap):
    model = dataclasses.replace(LLAMA, query=query, max_anchor_gap=max_anchor_gap)
    network = build(model, groups, dtype=torch.float64)
    windows = draw_windows(order, LENGTHS)
    batch = windows.batch()
    assert batch.anchor_gaps[batch.is_target].max() > 2, "no gap is longer than the shorter table"
    rows = starts(network, batch)
    row_of = batch.order.argsort(dim=1) - 1
    for b, p, vector in expected_starts(network, windows, query):
        torch.testing.assert_close(rows[row_of[b, p], b], vector, atol=1e-12, rtol=0)


def test_row_zero_of_the_gap_table_is_zero_whatever_it_holds(groups):
    network = build(LLAMA, groups, dtype=torch.float64)
    gap = network.query_start.gap
    assert gap.weight[0].any()
    out = gap(torch.tensor([[0, 1, 2]]))
    assert not out[0].any()
    assert torch.equal(out[1:, 0], gap.weight[1:3])
    out.sum().backward()
    assert not gap.weight.grad[0].any()
    assert gap.weight.grad[1].any()


def test_an_anchor_with_a_fresh_prefix_is_an_anchor(groups):
    batch = draw_windows("random", (15,)).batch()
    losses = []
    for query in ("anchor", "anchor+prefix"):
        network = build(dataclasses.replace(LLAMA, query=query), groups, dtype=torch.float64)
        init_weights(network, seed=0)
        losses.append(network(batch))
    torch.testing.assert_close(*losses, atol=1e-12, rtol=0)


def test_a_fresh_gap_table_says_nothing(groups):
    """A converted AR model decodes in streams before it has learned what a gap is."""
    network = build(LLAMA, groups)
    init_weights(network, seed=0)
    assert not network.query_start.gap(torch.arange(80).view(1, -1)).any()


def test_absolute_positions_are_those_of_the_place_before(groups):
    """The learned table's row p - 1 and no other stands in the query row of p."""
    model = dataclasses.replace(GPT2, two_stream_layers=0, layers=1)
    network = build(model, groups, dtype=torch.float64, max_positions=16)
    batch = draw_windows("l2r", (8,), count=1).batch()
    hidden = network.forward_layers(batch)
    for p in range(1, 8):
        (gradient,) = torch.autograd.grad(
            hidden[p - 1].square().sum(), network.position_embedding, retain_graph=True
        )
        reached = gradient.abs().sum(dim=-1).nonzero().flatten().tolist()
        assert reached == list(range(p))
