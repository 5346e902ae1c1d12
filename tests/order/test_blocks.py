"""The pure constructions, against the definitions they come from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.order.blocks import (
    diffusion_blocks,
    group_blocks,
    left_to_right_blocks,
    permuted_group_blocks,
    progressive_blocks,
    strided_blocks,
)

word_lists = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60).map(
    lambda words: np.array(words, dtype=np.uint64)
)


def rounds(block: np.ndarray) -> list[list[int]]:
    """Positions (from 1) by block."""
    return [(np.flatnonzero(block == b) + 1).tolist() for b in range(1, block.max() + 1)]


def strided_by_hand(num_targets: int, streams: int) -> list[list[int]]:
    """The sets of positions of joint strided blocks, from the words of the definition."""
    length = -(-num_targets // min(streams, num_targets))
    positions = list(range(1, num_targets + 1))
    segments = [positions[begin : begin + length] for begin in range(0, num_targets, length)]
    heads = [[segment[0]] for segment in segments]
    return heads + [
        [segment[offset] for segment in segments if offset < len(segment)]
        for offset in range(1, length)
    ]


def test_the_paper_s_example_of_two_streams() -> None:
    assert rounds(strided_blocks(8, 2, joint=True)) == [[1], [5], [2, 6], [3, 7], [4, 8]]
    alone = [[1], [5], [2], [6], [3], [7], [4], [8]]
    assert rounds(strided_blocks(8, 2, joint=False)) == alone


@given(num_targets=st.integers(1, 80), streams=st.integers(1, 90))
def test_strided_is_its_definition(num_targets: int, streams: int) -> None:
    expected = strided_by_hand(num_targets, streams)
    assert rounds(strided_blocks(num_targets, streams, joint=True)) == expected
    flat = [[position] for positions in expected for position in positions]
    assert rounds(strided_blocks(num_targets, streams, joint=False)) == flat


@pytest.mark.parametrize(("streams", "count"), [(1, 1024), (2, 513), (4, 259), (8, 135)])
def test_strided_takes_few_rounds(streams: int, count: int) -> None:
    assert strided_blocks(1024, streams, joint=True).max() == count == streams + 1024 // streams - 1


def test_a_last_segment_that_is_shorter_ends_earlier() -> None:
    assert rounds(strided_blocks(5, 2, joint=True)) == [[1], [4], [2, 5], [3]]
    assert rounds(strided_blocks(5, 4, joint=True)) == [[1], [3], [5], [2, 4]]


def test_more_streams_than_targets_is_one_target_a_stream() -> None:
    assert rounds(strided_blocks(3, 7, joint=True)) == [[1], [2], [3]]


@given(words=word_lists, shuffled=st.integers(1, 70))
def test_progressive_moves_no_more_than_it_may(words: np.ndarray, shuffled: int) -> None:
    block = progressive_blocks(words, shuffled)
    moved = block != left_to_right_blocks(len(words))
    assert moved.sum() <= shuffled
    assert sorted(block) == list(range(1, len(words) + 1))
    if shuffled == 1:
        assert not moved.any()


@given(words=word_lists)
def test_progressive_over_all_tokens_is_a_plain_permutation(words: np.ndarray) -> None:
    block = progressive_blocks(words, len(words))
    np.testing.assert_array_equal(block - 1, np.argsort(words, kind="stable"))


@given(words=word_lists, size=st.integers(1, 70))
def test_groups_have_their_size(words: np.ndarray, size: int) -> None:
    num_targets = len(words)
    for block in (group_blocks(num_targets, size), permuted_group_blocks(words, size)):
        counts = np.bincount(block)[1:]
        assert (counts[:-1] == size).all()
        assert counts[-1] == (num_targets - 1) % size + 1
    assert (np.diff(group_blocks(num_targets, size)) >= 0).all()


def test_permuted_groups_follow_the_words() -> None:
    words = np.array([50, 10, 40, 20, 30], dtype=np.uint64)
    assert rounds(permuted_group_blocks(words, 2)) == [[2, 4], [3, 5], [1]]
    assert rounds(permuted_group_blocks(words, 1)) == [[2], [4], [5], [3], [1]]


def test_diffusion_generates_the_last_masked_first() -> None:
    # A word w stands for the time 1 + floor(4 w / 2^64).
    quarter = 2**62
    words = np.array([0, 3 * quarter, quarter - 1, 3 * quarter + 5, quarter], dtype=np.uint64)
    assert rounds(diffusion_blocks(words, 4)) == [[2, 4], [5], [1, 3]]  # nobody drew time 3


def test_diffusion_with_one_time_is_one_block() -> None:
    words = np.array([1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert diffusion_blocks(words, 1).tolist() == [1, 1, 1]
