"""Sorted windows compared with masks written from the definition, one element at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.errors import OrderError
from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import OrderPolicy, RandomPermutation
from armd_scale.order.sort import SortedWindows, sort_by_block
from armd_scale.order.spans import KeySpans
from armd_scale.order.spec import parse_spec
from tests.support.strategies import given_windows, long_lengths, orders

windows = long_lengths.flatmap(lambda lengths: st.tuples(st.just(lengths), given_windows(lengths)))


def documents_of(lengths: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), lengths)


def mask(spans: KeySpans, *, window: int, num_keys: int) -> np.ndarray:
    key = np.arange(num_keys)
    return (key >= spans.start[window, :, None]) & (key < spans.stop[window, :, None])


def check_window(
    result: SortedWindows, window: int, block: np.ndarray, lengths: tuple[int, ...]
) -> None:
    """Compare one window of a result with the definition."""
    total = len(block)
    document = documents_of(lengths)
    order = sorted(range(total), key=lambda p: (document[p], block[p], p))
    assert result.order[window].tolist() == order

    same = document[:, None] == document[None, :]
    at_most = same & (block[None, :] <= block[:, None])
    before = same & (block[None, :] < block[:, None])
    content_positions, labels = order[:-1], order[1:]  # of content rows and of query rows
    target = block[labels] > 0
    assert result.is_target[window].tolist() == target.tolist()
    rows = total - 1
    content = mask(result.content, window=window, num_keys=rows)
    query = mask(result.query, window=window, num_keys=rows)
    upper = mask(result.upper_query, window=window, num_keys=rows)
    np.testing.assert_array_equal(content, at_most[np.ix_(content_positions, content_positions)])
    np.testing.assert_array_equal(query[target], before[np.ix_(labels, content_positions)][target])
    among_targets = at_most[np.ix_(labels, labels)] & target
    np.testing.assert_array_equal(upper[target], among_targets[target])
    np.testing.assert_array_equal(query[~target], np.eye(rows, dtype=bool)[~target])
    np.testing.assert_array_equal(upper[~target], np.eye(rows, dtype=bool)[~target])

    for p in range(total):
        anchor, gap = result.anchor[window, p], result.anchor_gap[window, p]
        if block[p] > 0:
            visible = [j for j in range(p) if before[p, j]]
            assert anchor == max(visible)
            assert gap == p - 1 - anchor
        else:
            opens = p == 0 or document[p - 1] != document[p]
            assert (anchor, gap) == (p if opens else p - 1, 0)


@given(drawn=windows)
def test_any_blocks(drawn: tuple[tuple[int, ...], np.ndarray]) -> None:
    lengths, block = drawn
    check_window(sort_by_block(block[None], [lengths]), 0, block, lengths)


@given(order=orders, lengths=long_lengths, sample=st.integers(0, 1000))
def test_blocks_of_every_order(order: OrderPolicy, lengths: tuple[int, ...], sample: int) -> None:
    block = sample_blocks(order, seed=3, sample_index=sample, lengths=lengths)
    check_window(sort_by_block(block[None], [lengths]), 0, block, lengths)


@given(data=st.data(), order=orders, total=st.integers(2, 40), count=st.integers(1, 5))
def test_windows_of_a_batch_are_independent(
    data: st.DataObject, order: OrderPolicy, total: int, count: int
) -> None:
    cuts = st.lists(st.integers(1, total - 1), max_size=3, unique=True).map(sorted)
    lengths = [tuple(np.diff([0, *data.draw(cuts), total]).tolist()) for _ in range(count)]
    block = np.stack(
        [sample_blocks(order, seed=0, sample_index=k, lengths=lengths[k]) for k in range(count)]
    )
    result = sort_by_block(block, lengths)
    for window in range(count):
        check_window(result, window, block[window], lengths[window])


@pytest.mark.parametrize(
    "spec", ["random", "strided-ar:4", "strided-ar:2", "progressive:64", "l2r"]
)
def test_singletons_are_causal(spec: str) -> None:
    block = np.stack(
        [sample_blocks(parse_spec(spec), seed=0, sample_index=k, lengths=(258,)) for k in range(3)]
    )
    result = sort_by_block(block, [(258,)] * 3)
    assert result.causal
    row = np.arange(257)
    for spans in (result.content, result.query, result.upper_query):
        assert not spans.start.any()
        assert (spans.stop == row + 1).all()


@given(drawn=windows)
def test_flags_are_exact(drawn: tuple[tuple[int, ...], np.ndarray]) -> None:
    lengths, block = drawn
    check_flags(block, lengths)


@given(order=orders, lengths=long_lengths)
def test_flags_of_drawn_orders_are_exact(order: OrderPolicy, lengths: tuple[int, ...]) -> None:
    check_flags(sample_blocks(order, seed=1, sample_index=2, lengths=lengths), lengths)


def check_flags(block: np.ndarray, lengths: tuple[int, ...]) -> None:
    result = sort_by_block(block[None], [lengths])
    singletons = len(set(block.tolist())) == len(block)
    # A single row has one key to see, whatever the blocks.
    assert result.causal == ((len(lengths) == 1 and singletons) or len(block) == 2)
    pieces = np.split(block, np.cumsum(lengths)[:-1])
    within = [len(set(piece.tolist())) == len(piece) for piece in pieces]
    within[-1] |= len(pieces[-1]) == 2  # again a single row
    assert (result.document_rows is not None) == all(within)
    grows = all(piece.tolist() == sorted(set(piece.tolist())) for piece in pieces)
    assert result.left_to_right == grows


def test_a_flag_describes_the_whole_batch() -> None:
    text_order, swapped = np.array([0, 1, 2, 3]), np.array([0, 2, 1, 3])
    pair = np.array([0, 1, 1, 2])
    whole = [(4,), (4,)]
    assert sort_by_block(np.stack([text_order, text_order]), whole).left_to_right
    mixed = sort_by_block(np.stack([text_order, swapped]), whole)
    assert (mixed.causal, mixed.left_to_right) == (True, False)
    assert not sort_by_block(np.stack([swapped, pair]), whole).causal


def test_rows_of_documents_fill_the_window() -> None:
    block = np.array([0, 2, 1, 0, 0, 3, 1])
    assert sort_by_block(block[None], [(3, 1, 3)]).document_rows == ((3, 1, 2),)
    # A document of one token at the end has no row.
    assert sort_by_block(np.array([[0, 2, 1, 0]]), [(3, 1)]).document_rows == ((3,),)


def test_infilling_shows_what_is_given_on_both_sides() -> None:
    # x0 x1 _ _ x4 _ : holes 2, 3 together, then 5.
    block = np.array([0, 0, 1, 1, 0, 2], dtype=np.int32)
    result = sort_by_block(block[None], [(6,)])
    assert result.order.tolist() == [[0, 1, 4, 2, 3, 5]]
    assert result.is_target.tolist() == [[False, False, True, True, True]]
    assert result.query.stop[0, 2:].tolist() == [3, 3, 5]
    assert result.upper_query.start[0, 2:].tolist() == [2, 2, 2]
    assert result.upper_query.stop[0, 2:].tolist() == [4, 4, 5]
    assert result.anchor.tolist() == [[0, 0, 1, 1, 3, 4]]
    assert result.anchor_gap.tolist() == [[0, 0, 0, 1, 0, 0]]


def test_anchors_far_to_the_left() -> None:
    """Orders in which all other tokens of the window are between a token and its anchor."""
    ends = np.r_[0, np.arange(2, 4097), 1].astype(np.int32)  # the last token right after BOS
    backwards = np.r_[0, np.arange(4096, 0, -1)].astype(np.int32)
    result = sort_by_block(np.stack([ends, backwards]), [(4097,)] * 2)
    assert result.anchor[0].tolist() == [0, *range(4095), 0]
    assert not result.anchor[1].any()
    assert result.anchor_gap[1, 1:].tolist() == list(range(4096))


@pytest.mark.parametrize(
    ("block", "lengths", "says"),
    [
        ([1, 2, 3], (3,), "first token of every document must be given, block 0 .got block 1."),
        ([0, 1, 4, 2], (2, 2), "got block 4"),
        ([0, -1, 2], (3,), "blocks must be >= 0 .got -1."),
    ],
)
def test_documents_must_start_with_a_given_token(
    block: list[int], lengths: tuple[int, ...], says: str
) -> None:
    with pytest.raises(OrderError, match=says):
        sort_by_block(np.array([block], dtype=np.int32), [lengths])


def test_block_ids_may_be_huge() -> None:
    lengths = (512, 512)
    block = sample_blocks(RandomPermutation(), seed=0, sample_index=0, lengths=lengths)
    sparse = block * np.int32(4_000_000)
    result, expected = (sort_by_block(ids[None], [lengths]) for ids in (sparse, block))
    np.testing.assert_array_equal(result.order, expected.order)
    np.testing.assert_array_equal(result.upper_query.stop, expected.upper_query.stop)
