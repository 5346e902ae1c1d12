"""Decode state: which rows a round feeds, and what they see."""

import itertools

import numpy as np
import pytest
import torch

from armd_scale.generation import GenerationSpec, Strategy, continuation_spec
from armd_scale.generation.decode_state import DecodeState


def state_of(*specs):
    return DecodeState(specs, device=torch.device("cpu"))


def prompt_spec(length, *, num_tokens, streams=1):
    """A prompt of tokens 10, 11, ... that is to be continued."""
    random_words = np.zeros(num_tokens, dtype=np.uint64)
    return continuation_spec(np.arange(length) + 10, Strategy(streams=streams), random_words)


@pytest.mark.parametrize(
    ("num_tokens", "streams", "num_blocks"),
    [(8, 1, 8), (8, 2, 5), (8, 4, 5), (1024, 4, 259), (18, 4, 8)],
)
def test_number_of_blocks_is_as_documented(num_tokens, streams, num_blocks):
    bounds = state_of(prompt_spec(5, num_tokens=num_tokens, streams=streams)).block_bounds()
    assert num_blocks == streams + -(-num_tokens // streams) - 1
    assert bounds.shape == (1, num_blocks + 1)
    assert (bounds[0, 0], bounds[0, -1]) == (5, 5 + num_tokens)


def test_block_bounds_of_shorter_texts_repeat_their_length():
    bounds = state_of(
        prompt_spec(3, num_tokens=3), prompt_spec(1, num_tokens=5, streams=5)
    ).block_bounds()
    assert bounds.tolist() == [[3, 4, 5, 6, 6, 6], [1, 2, 3, 4, 5, 6]]


def test_slot_range_is_flush_right_after_padding():
    state = state_of(prompt_spec(3, num_tokens=3), prompt_spec(1, num_tokens=2))
    slots = state.slot_range(np.array([2, 1]), np.array([5, 2]))
    assert slots.tolist() == [[2, 3, 4], [6, 6, 1]]
    assert state.columns_of(slots).tolist() == [[2, 3, 4], [6, 6, 1]]
    assert state.slot_range(np.array([2, 3]), np.array([2, 3])).shape == (2, 0)


def test_rows_of_a_round_contain_the_tokens_known_by_then():
    state = state_of(prompt_spec(2, num_tokens=4, streams=2))
    logprob = torch.zeros(1, 1)
    queries = state.slot_info_at(state.slot_range(np.array([1]), np.array([3])))
    batch = state.make_batch(state.slot_range(np.array([0]), np.array([2])), queries)
    assert batch.tokens.tolist() == [[10, 11]]
    assert batch.anchor_tokens.tolist() == [[10, 11]]
    assert batch.label_positions.tolist() == [[1, 2]]
    for position, token in [(2, 70), (4, 80)]:
        state.commit(torch.tensor([[position]]), torch.tensor([[token]]), logprob, 1)
    queries = state.slot_info_at(state.slot_range(np.array([4]), np.array([6])))
    batch = state.make_batch(state.slot_range(np.array([2]), np.array([4])), queries)
    assert (batch.tokens.tolist(), batch.positions.tolist()) == ([[70, 80]], [[2, 4]])
    assert (batch.anchor_tokens.tolist(), batch.anchor_gaps.tolist()) == ([[70, 80]], [[0, 0]])
    assert batch.query.stop.tolist() == [[4, 4]]
    assert state.known.tolist() == [[True, True, True, False, True, False]]


def test_seen_tokens_exclude_holes_and_padding():
    state = state_of(prompt_spec(2, num_tokens=3), prompt_spec(1, num_tokens=1))
    seen = state.seen_tokens(20)[:, 0]
    assert [row.nonzero().flatten().tolist() for row in seen] == [[10, 11], [10]]


@pytest.mark.parametrize(
    ("known", "block"),
    [([True, False, True], [0, 1, 2]), ([True, True, False], [0, 1, 1])],
)
def test_known_tokens_after_unknown_ones_are_refused(known, block):
    with pytest.raises(AssertionError, match="known"):
        state_of(GenerationSpec(np.arange(3), np.array(block), np.array(known))).block_bounds()


def test_anchors_are_the_nearest_visible_positions_to_the_left():
    state = state_of(prompt_spec(1, num_tokens=9))
    for visible in itertools.islice(itertools.product([True, False], repeat=9), 0, 512, 37):
        mask = torch.tensor([[True, *visible]])
        expected = [max((j for j in range(p) if mask[0, j]), default=0) for p in range(10)]
        assert state.anchors(mask).tolist() == [expected]
