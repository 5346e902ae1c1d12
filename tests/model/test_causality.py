"""A prediction depends on exactly the tokens of earlier blocks of the same document."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from tests.support.networks import LLAMA, OTHERS, build
from tests.support.windows import VOCAB, Windows, draw_windows, logits_by_index

QUERIES = ["anchor", "prefix", "learned", "anchor+prefix"]
ORDERS = ["l2r", "random", "strided-ar:2", "strided:3", "permuted_groups:4", "given"]
DOCUMENTS = [(14,), (4, 1, 7, 2)]


def may_depend(windows: Windows) -> np.ndarray:
    """Return [P, P]: whether the prediction at p may depend on token j, by definition."""
    block, document = windows.block[0], windows.document
    same = document[:, None] == document[None, :]
    return same & (block[:, None] > block[None, :])


def influence(network: ArmdModel, windows: Windows) -> np.ndarray:
    """Return [P, P]: whether any bit of the logits at p changes when token j changes."""
    count = windows.tokens.shape[1]
    copies = Windows(
        windows.tokens.repeat(count, 0), windows.block.repeat(count, 0), windows.lengths
    )
    changed = copies.tokens.copy()
    changed[np.arange(count), np.arange(count)] += 1 + np.arange(count)
    changed %= VOCAB
    with torch.no_grad():
        before = logits_by_index(network, copies.batch())
        after = logits_by_index(network, copies.batch(changed))
    same = (before == after) | (before.isnan() & after.isnan())
    return ~same.all(dim=-1).numpy().T


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("lengths", DOCUMENTS)
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("order", ORDERS)
def test_a_prediction_depends_on_earlier_blocks_and_nothing_else(
    groups, order, query, upper, lengths
):
    model = dataclasses.replace(LLAMA, query=query, upper_visibility=upper)
    network = build(model, groups, dtype=torch.float64)
    windows = draw_windows(order, lengths, count=1)
    np.testing.assert_array_equal(influence(network, windows), may_depend(windows))


@pytest.mark.parametrize("two_stream_layers", [1, 3, 4])
@pytest.mark.parametrize("order", ["random", "given"])
def test_causality_for_any_number_of_two_stream_layers(groups, order, two_stream_layers):
    model = dataclasses.replace(LLAMA, two_stream_layers=two_stream_layers)
    windows = draw_windows(order, (9, 5), count=1)
    for dtype in (torch.float32, torch.float64):
        network = build(model, groups, dtype=dtype)
        np.testing.assert_array_equal(influence(network, windows), may_depend(windows))


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("order", ["l2r", "random", "given"])
def test_causality_for_other_architectures(groups, order, model):
    network = build(model, groups, dtype=torch.float64)
    windows = draw_windows(order, (9, 5), count=1)
    np.testing.assert_array_equal(influence(network, windows), may_depend(windows))


@pytest.mark.parametrize("query", QUERIES)
def test_no_gradient_reaches_the_predictions_own_block(groups, query):
    """Check causality with the backward pass, through attention, anchors and prefixes at once."""
    model = dataclasses.replace(LLAMA, query=query, tie_embeddings=False)
    network = build(model, groups, dtype=torch.float64)
    windows = draw_windows("permuted_groups:3", (14,), count=1)
    # A different token at every index, so that each row of the table belongs to one index.
    windows = dataclasses.replace(windows, tokens=np.arange(14)[None, :])
    for p in range(1, 14):
        network.zero_grad()
        logits_by_index(network, windows.batch())[0, p].sum().backward()
        gradient = network.embedding.weight.grad
        assert gradient is not None
        reached = gradient[:14].abs().sum(dim=-1) > 0
        np.testing.assert_array_equal(reached.numpy(), may_depend(windows)[p])


def permute_slots(windows: Windows, *, seed: int) -> ArmdBatch:
    """Return a batch in which tokens are in other slots within their own blocks."""
    batch = windows.batch()
    key = torch.from_numpy(windows.document * 100 + windows.block)
    by_slot = torch.take_along_dim(key, batch.order, dim=1).numpy()
    noise = np.random.default_rng(seed).random(by_slot.shape)
    slots = torch.from_numpy(np.lexsort((noise, by_slot)))
    assert (slots != torch.arange(slots.shape[1])).any()

    def permute_content(content: Tensor, queries: Tensor) -> Tensor:
        """Permute values by slot; the last slot has no content row, but its query row's value."""
        return torch.take_along_dim(torch.cat((content, queries[:, -1:]), dim=1), slots, dim=1)

    def permute_queries(queries: Tensor) -> Tensor:
        # Slot 0 has no query row. Its placeholder lands on a given token, which is never read.
        return torch.take_along_dim(torch.cat((queries[:, :1], queries), dim=1), slots, dim=1)[
            :, 1:
        ]

    tokens = permute_content(batch.tokens, batch.labels)
    positions = permute_content(batch.positions, batch.label_positions)
    return dataclasses.replace(
        batch,
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        positions=positions[:, :-1],
        label_positions=positions[:, 1:].clamp(min=1),
        anchor_tokens=permute_queries(batch.anchor_tokens),
        anchor_gaps=permute_queries(batch.anchor_gaps),
        order=torch.take_along_dim(batch.order, slots, dim=1),
    )


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("lengths", DOCUMENTS)
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("order", ["strided:3", "permuted_groups:4", "given"])
def test_the_order_of_slots_within_a_block_is_irrelevant(groups, order, query, upper, lengths):
    model = dataclasses.replace(LLAMA, query=query, upper_visibility=upper)
    network = build(model, groups, dtype=torch.float64)
    windows = draw_windows(order, lengths)
    with torch.no_grad():
        expected = logits_by_index(network, windows.batch())
        for seed in range(3):
            logits = logits_by_index(network, permute_slots(windows, seed=seed))
            torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0, equal_nan=True)


def query_alone(windows: Windows, p: int) -> Windows:
    """Move every other token of p's block to a block after all others."""
    block = windows.block.copy()
    others = (block == block[:, p : p + 1]) & (np.arange(block.shape[1]) != p)
    return dataclasses.replace(windows, block=np.where(others, block.max() + 1, block))


def largest_change_when_queried_alone(network: ArmdModel, windows: Windows) -> float:
    with torch.no_grad():
        together = logits_by_index(network, windows.batch())
        changes = [
            (logits_by_index(network, query_alone(windows, p).batch()) - together)[:, p].abs().max()
            for p in np.flatnonzero(windows.block[0]).tolist()
        ]
    return float(max(changes))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("lengths", DOCUMENTS)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("order", ["strided:3", "permuted_groups:4", "given"])
def test_upper_self_makes_a_prediction_independent_of_the_other_queries(
    groups, order, query, lengths
):
    model = dataclasses.replace(LLAMA, query=query, upper_visibility="self")
    windows = draw_windows(order, lengths, count=1)
    network = build(model, groups, dtype=torch.float64)
    assert largest_change_when_queried_alone(network, windows) < 1e-10
    # Under `block` the rows of a block see one another, so the test can fail.
    network.model = dataclasses.replace(network.model, upper_visibility="block")
    assert largest_change_when_queried_alone(network, windows) > 1e-3


@pytest.mark.parametrize(
    ("order", "two_stream_layers"), [("random", 2), ("l2r", 1), ("diffusion:4", 4)]
)
def test_upper_visibilities_agree_without_larger_blocks_or_upper_layers(
    groups, order, two_stream_layers
):
    """The two settings agree for singleton blocks, or without upper layers."""
    model = dataclasses.replace(LLAMA, two_stream_layers=two_stream_layers)
    network = build(model, groups, dtype=torch.float64)
    batch = dataclasses.replace(
        draw_windows(order, (5, 9)).batch(),
        is_plain_causal=False,
        document_rows=None,
        is_left_to_right=False,
    )
    block = network(batch)
    network.model = dataclasses.replace(network.model, upper_visibility="self")
    torch.testing.assert_close(network(batch), block, atol=1e-12, rtol=0)
