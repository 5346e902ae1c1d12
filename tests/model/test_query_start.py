"""Start of the query stream against the sums that define it."""

import dataclasses

import pytest
import torch

from armd_scale.model.attention_mask import IntervalMask
from armd_scale.model.weight_init import init_weights
from tests.support.networks import GPT2, LLAMA, build
from tests.support.windows import draw_windows

LENGTHS = (4, 1, 14)
ORDERS = ["random", "strided:3", "given"]


def query_rows(network, batch):
    """Return G^0 before any absolute position is added."""
    mask = IntervalMask(batch.query.start, batch.query.stop, num_keys=batch.tokens.shape[1])
    content = network.embedding(batch.tokens).transpose(0, 1)
    anchors = network.embedding(batch.anchor_tokens).transpose(0, 1)
    return network.query_start(batch, content=content, anchors=anchors, mask=mask)


def expected_starts(network, windows, kind):
    """Yield (sample, index in the window, vector)."""
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
                positions = start.prefix.position_embedding[windows.position]
                weights = positions[p] @ positions[visible].T
                mean = weights @ table[tokens[visible]] / len(visible)
                total = total + start.prefix.scale * mean
            if "learned" in kind:
                total = total + start.vector
            yield b, p, total


@pytest.mark.parametrize("max_anchor_gap", [2, 64])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("query", ["anchor", "prefix", "learned", "anchor+prefix"])
def test_query_start_by_definition(groups, query, order, max_anchor_gap):
    model = dataclasses.replace(LLAMA, query=query, max_anchor_gap=max_anchor_gap)
    network = build(model, groups, dtype=torch.float64)
    windows = draw_windows(order, LENGTHS)
    batch = windows.batch()
    assert batch.anchor_gaps[batch.is_target].max() > 2, "no gap exceeds the smaller table"
    rows = query_rows(network, batch)
    row_index = batch.order.argsort(dim=1) - 1
    for b, p, vector in expected_starts(network, windows, query):
        torch.testing.assert_close(rows[row_index[b, p], b], vector, atol=1e-12, rtol=0)


def test_gap_zero_maps_to_zero_whatever_row_zero_holds(groups):
    network = build(LLAMA, groups, dtype=torch.float64)
    gap = network.query_start.gap
    assert gap is not None
    assert gap.weight[0].any()
    vectors = gap(torch.tensor([[0, 1, 2]]))
    assert not vectors[0].any()
    assert torch.equal(vectors[1:, 0], gap.weight[1:3])
    vectors.sum().backward()
    gradient = gap.weight.grad
    assert gradient is not None
    assert not gradient[0].any()
    assert gradient[1].any()


def test_anchor_with_a_new_prefix_equals_anchor(groups):
    batch = draw_windows("random", (15,)).batch()
    losses = []
    for query in ("anchor", "anchor+prefix"):
        network = build(dataclasses.replace(LLAMA, query=query), groups, dtype=torch.float64)
        init_weights(network, seed=0)
        losses.append(network(batch))
    torch.testing.assert_close(*losses, atol=1e-12, rtol=0)


def test_a_new_gap_embedding_is_zero(groups):
    """So a converted AR model can decode in streams before any training."""
    network = build(LLAMA, groups)
    init_weights(network, seed=0)
    gap = network.query_start.gap
    assert gap is not None
    assert not gap(torch.arange(80).view(1, -1)).any()


def test_a_query_row_has_the_absolute_position_before_its_label(groups):
    """The query row of p adds row p - 1 of the position embedding (and sees earlier rows)."""
    model = dataclasses.replace(GPT2, two_stream_layers=0, layers=1)
    network = build(model, groups, dtype=torch.float64, max_positions=16)
    batch = draw_windows("l2r", (8,), count=1).batch()
    hidden = network.forward_layers(batch)
    table = network.get_parameter("position_embedding")
    for p in range(1, 8):
        (gradient,) = torch.autograd.grad(hidden[p - 1].square().sum(), table, retain_graph=True)
        reached = gradient.abs().sum(dim=-1).nonzero().flatten().tolist()
        assert reached == list(range(p))
