"""Outlines and the rounds that they are cut into."""

import itertools

import numpy as np
import pytest
import torch

from armd_scale.errors import GenerationError
from armd_scale.sample.plan import Outline, Plan, continuation


def plan_of(*outlines):
    return Plan(outlines, device=torch.device("cpu"))


def test_a_prompt_is_read_left_to_right_and_streams_share_the_rest():
    outline = continuation(np.array([9, 4, 5]), num_tokens=8, streams=2)
    assert outline.block.tolist() == [0, 1, 2, 3, 5, 6, 7, 4, 5, 6, 7]
    assert outline.known.tolist() == [True] * 3 + [False] * 8
    assert outline.tokens[:3].tolist() == [9, 4, 5]


@pytest.mark.parametrize("prompt_length", [1, 5])
@pytest.mark.parametrize(
    ("num_tokens", "streams", "rounds"),
    [(8, 1, 8), (8, 2, 5), (8, 4, 5), (1024, 4, 259), (18, 4, 8)],
)
def test_the_promised_number_of_rounds(prompt_length, num_tokens, streams, rounds):
    plan = plan_of(continuation(np.arange(prompt_length), num_tokens=num_tokens, streams=streams))
    assert rounds == streams + -(-num_tokens // streams) - 1
    assert len(plan.rounds) == rounds
    assert sum(one.num_slots for one in plan.rounds) == num_tokens


def test_rounds_feed_every_row_once_and_in_order():
    plan = plan_of(continuation(np.arange(4), num_tokens=9, streams=3))
    for rows in ([r.content for r in plan.rounds], [r.queries for r in plan.rounds]):
        assert rows[0].start == 0
        assert all(a.stop == b.start for a, b in itertools.pairwise(rows))
    assert plan.rounds[-1].queries.stop == 12
    # The tokens of the last round are context for nobody.
    assert plan.rounds[-1].content.stop == plan.rounds[-1].slots.start


def test_given_tokens_have_no_query_rows():
    known = np.array([True, True, False, True, False, True])
    plan = plan_of(Outline(np.arange(6), np.where(known, 0, 1), known))
    (only,) = plan.rounds
    assert (only.content, only.queries, only.slots) == (slice(0, 4), slice(3, 5), slice(4, 6))


def test_a_round_reads_the_tokens_that_are_known_by_then():
    plan = plan_of(continuation(np.array([9, 4]), num_tokens=4, streams=2))
    first, second, last = plan.rounds
    batch = plan.batch(first)
    assert batch.tokens.tolist() == [[9, 4]]
    assert batch.anchor_tokens.tolist() == [[9, 4]]
    plan.write(first, torch.tensor([[70]]))
    batch = plan.batch(second)
    assert (batch.tokens.tolist(), batch.label_positions.tolist()) == ([[70]], [[4]])
    assert (batch.anchor_tokens.tolist(), batch.anchor_gaps.tolist()) == ([[70]], [[1]])
    plan.write(second, torch.tensor([[80]]))
    batch = plan.batch(last)
    assert (batch.tokens.tolist(), batch.positions.tolist()) == ([[80]], [[4]])
    assert batch.anchor_tokens.tolist() == [[70, 80]]
    plan.write(last, torch.tensor([[71, 81]]))
    assert plan.text.tolist() == [[9, 4, 70, 71, 80, 81]]


def test_shorter_outlines_are_padded_as_a_document_of_their_own():
    outlines = [continuation(np.arange(m), num_tokens=4, streams=1) for m in (3, 1)]
    plan = plan_of(*outlines)
    assert plan.padding == [0, 2]
    assert plan.layout.left_to_right
    batch = plan.batch(plan.rounds[0])
    assert batch.content.start.tolist() == [[0, 0, 0], [0, 0, 2]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 1, 0]]


@pytest.mark.parametrize(
    ("prompt", "num_tokens", "streams", "message"),
    [
        ([], 4, 1, "at least the token that opens a document, got none"),
        ([0], 0, 1, "number of tokens must be at least 1, got 0"),
        ([0], 4, 5, "streams must be between 1 and the 4 tokens to generate, got 5"),
        ([0], 4, 0, "streams must be between 1 and the 4 tokens to generate, got 0"),
    ],
)
def test_what_cannot_be_asked_for(prompt, num_tokens, streams, message):
    with pytest.raises(GenerationError, match=message):
        continuation(np.array(prompt, dtype=int), num_tokens=num_tokens, streams=streams)


@pytest.mark.parametrize(
    ("known", "block"),
    [([True, False, True], [0, 1, 2]), ([True, True, False], [0, 1, 1])],
)
def test_known_blocks_come_whole_and_first(known, block):
    with pytest.raises(AssertionError, match="known"):
        plan_of(Outline(np.arange(3), np.array(block), np.array(known)))
