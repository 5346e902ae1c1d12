"""Rows of a round: which tokens are fed, and what they see."""

import itertools

import numpy as np
import pytest
import torch

from armd_scale.generation import GenerationSpec, Strategy, continuation_spec
from armd_scale.generation.decode_state import DecodeState


def canvas_of(*outlines):
    return DecodeState(outlines, device=torch.device("cpu"))


def prompt_of(length, *, num_tokens, streams=1):
    words = np.zeros(num_tokens, dtype=np.uint64)
    return continuation_spec(np.arange(length) + 10, Strategy(streams=streams), words)


@pytest.mark.parametrize(
    ("num_tokens", "streams", "rounds"),
    [(8, 1, 8), (8, 2, 5), (8, 4, 5), (1024, 4, 259), (18, 4, 8)],
)
def test_the_promised_number_of_blocks(num_tokens, streams, rounds):
    bounds = canvas_of(prompt_of(5, num_tokens=num_tokens, streams=streams)).bounds()
    assert rounds == streams + -(-num_tokens // streams) - 1
    assert bounds.shape == (1, rounds + 1)
    assert (bounds[0, 0], bounds[0, -1]) == (5, 5 + num_tokens)


def test_bounds_of_texts_that_end_earlier_stay_at_their_end():
    bounds = canvas_of(prompt_of(3, num_tokens=3), prompt_of(1, num_tokens=5, streams=5)).bounds()
    assert bounds.tolist() == [[3, 4, 5, 6, 6, 6], [1, 2, 3, 4, 5, 6]]


def test_slots_are_flush_right_after_nobodys():
    canvas = canvas_of(prompt_of(3, num_tokens=3), prompt_of(1, num_tokens=2))
    slots = canvas.slots(np.array([2, 1]), np.array([5, 2]))
    assert slots.tolist() == [[2, 3, 4], [6, 6, 1]]
    assert canvas.places_of(slots).tolist() == [[2, 3, 4], [6, 6, 1]]
    assert canvas.slots(np.array([2, 3]), np.array([2, 3])).shape == (2, 0)


def test_a_round_reads_the_tokens_that_are_known_by_then():
    canvas = canvas_of(prompt_of(2, num_tokens=4, streams=2))
    zeros = torch.zeros(1, 1)
    known = np.array([0]), np.array([2])
    batch = canvas.batch(
        canvas.slots(*known), canvas.slot_info_at(canvas.slots(np.array([1]), np.array([3])))
    )
    assert batch.tokens.tolist() == [[10, 11]]
    assert batch.anchor_tokens.tolist() == [[10, 11]]
    assert batch.label_positions.tolist() == [[1, 2]]
    for position, token in [(2, 70), (4, 80)]:
        canvas.write(torch.tensor([[position]]), torch.tensor([[token]]), zeros, 1)
    last = canvas.slots(np.array([4]), np.array([6]))
    batch = canvas.batch(canvas.slots(np.array([2]), np.array([4])), canvas.slot_info_at(last))
    assert (batch.tokens.tolist(), batch.positions.tolist()) == ([[70, 80]], [[2, 4]])
    assert (batch.anchor_tokens.tolist(), batch.anchor_gaps.tolist()) == ([[70, 80]], [[0, 0]])
    assert batch.query.stop.tolist() == [[4, 4]]
    assert canvas.known.tolist() == [[True, True, True, False, True, False]]


def test_what_is_shown_leaves_out_holes_and_what_is_after_the_end():
    canvas = canvas_of(prompt_of(2, num_tokens=3), prompt_of(1, num_tokens=1))
    assert [row.nonzero().flatten().tolist() for row in canvas.seen(20)[:, 0]] == [[10, 11], [10]]


def test_a_text_is_over_once_it_is_known_up_to_a_generated_end():
    canvas = canvas_of(prompt_of(2, num_tokens=3), prompt_of(3, num_tokens=2))
    zeros = torch.zeros(2, 1)
    states = []
    for places, tokens in [((3, 3), (5, 6)), ((2, 4), (7, 5)), ((4, 5), (5, 9))]:
        canvas.write(torch.tensor(places)[:, None], torch.tensor(tokens)[:, None], zeros, 1)
        states.append(canvas.finished(5).tolist())
    assert states == [[False, False], [True, True], [True, True]]
    # A prompt may hold ends of documents.
    assert not canvas.finished(11).any()


@pytest.mark.parametrize(
    ("known", "block"),
    [([True, False, True], [0, 1, 2]), ([True, True, False], [0, 1, 1])],
)
def test_known_blocks_come_whole_and_first(known, block):
    with pytest.raises(AssertionError, match="known"):
        canvas_of(GenerationSpec(np.arange(3), np.array(block), np.array(known))).bounds()


def test_anchors_are_the_nearest_visible_positions():
    canvas = canvas_of(prompt_of(1, num_tokens=9))
    for visible in itertools.islice(itertools.product([True, False], repeat=9), 0, 512, 37):
        mask = torch.tensor([[True, *visible]])
        expected = [max((j for j in range(p) if mask[0, j]), default=0) for p in range(10)]
        assert canvas.anchors(mask).tolist() == [expected]
