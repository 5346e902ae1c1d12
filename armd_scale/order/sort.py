"""What may see what, once the tokens of a window are sorted by their generation block.

Masked diffusion draws a masking time tau for every token, and its reverse process unmasks the
token that was masked last first. Nothing but the order of those times enters the loss: sort the
tokens by tau, descending, call tokens of equal tau a block, and the objective becomes block-wise
causal prediction (Karami & Ghodsi, arXiv 2601.16971, Eq. 2)

    L = E_order  sum_p  -log P( x_p | { x_j : block[j] < block[p] } ).

So a window of N + 1 tokens and one integer per token, its block (0 = given, 1..T = generated in
that order), say everything. Sort the window by (document, block, position) and every set that
attention needs becomes a *contiguous run of slots*: the tokens of earlier blocks of my document
stand directly before my block, and my document begins at a known slot. A mask of (N + 1)^2 bits
shrinks to two integers per row; with blocks of one token each these are 0 and i + 1, which is
plain causal attention.

Rows and slots. `order[slot]` is the position in the window of the token that sorts to `slot`.
There are N rows of each kind:

* content row i is slot i. It may see its own block: slots [document, end of own block). The last
  block of a window is context for nobody, so its last slot, N, needs no row and spans end at N.
* query row i predicts the token of slot i + 1, from content rows. It must not see its own block:
  slots [document, begin of own block). A label one slot ahead of its row is what makes both spans
  equal to [0, i + 1) for singleton blocks, so one causal kernel serves both streams.
* upper row i is query row i again, where query rows attend to each other: from the row of the
  document's first target to the last row of its own block. Given tokens are nobody's label, so a
  document with g given tokens starts its upper rows g - 1 after its first slot.
  (The rows of strictly earlier blocks end at `query.stop - 1`.)

Documents sort as units, so a document occupies the same range as slots and as positions. A query
or upper row whose label is a given token predicts nothing; it sees itself alone, [i, i + 1), so
that no softmax runs over an empty set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from armd_scale.errors import OrderError


@dataclass(frozen=True, eq=False)
class KeySpans:
    """The keys that each row sees: start <= j < stop."""

    start: Int32[np.ndarray, "b N"]
    stop: Int32[np.ndarray, "b N"]


@dataclass(frozen=True, eq=False)
class SortedWindows:
    """Windows sorted by generation order; P = N + 1 positions (or slots), N rows."""

    order: Int64[np.ndarray, "b P"]
    """Position in the window of the token in each slot."""
    document_start: Int64[np.ndarray, "b P"]
    """First slot of the document of each slot; equally first position, by position."""
    is_target: Bool[np.ndarray, "b N"]
    """Whether query row i has something to predict, that is, slot i + 1 is not given."""
    content: KeySpans
    query: KeySpans
    upper_query: KeySpans
    anchor: Int64[np.ndarray, "b P"]
    """Nearest visible token to the left, by position: max { j < p : block[j] < block[p] }."""
    anchor_gap: Int64[np.ndarray, "b P"]
    """p - 1 - anchor, by position; 0 for given tokens."""
    causal: bool
    """Whether all spans are [0, i + 1): singleton blocks after one given token, one document."""
    document_rows: tuple[tuple[int, ...], ...] | None
    """For each window the rows of its documents, one after another, where within its document every
    row with a target sees all rows before it and itself: blocks of one token, one given token a
    document. None elsewhere."""
    left_to_right: bool
    """Whether nothing moved: in every document one given token, then ever later blocks."""


def sort_by_block(
    block: Int[np.ndarray, "b P"], lengths: Sequence[tuple[int, ...]]
) -> SortedWindows:
    """Sorts windows by (document, block, position) and says what each row sees.

    Args:
        block: generation block by position; any ids >= 0, dense or not, several given tokens
            anywhere. The first token of every document must be given.
        lengths: for each window the lengths of its documents in tokens, which sum to P.

    Raises:
        OrderError: a negative block, or a document whose first token is not given.
    """
    num_windows, num_slots = block.shape
    first = _document_starts(lengths, num_windows, num_slots)
    _require_given_starts(block, first)
    block = block.astype(np.int64, copy=False)
    key = first * (block.max() + 1) + block
    order = np.argsort(key, axis=1, kind="stable")
    run_start, run_stop = _runs(np.take_along_axis(key, order, axis=1))
    is_given = np.take_along_axis(block, order, axis=1) == 0

    content = _spans(first[:, :-1], np.minimum(run_stop[:, :-1], num_slots - 1))
    # A document's first run is its given tokens, whose end is therefore its first target's slot.
    first_target = np.take_along_axis(run_stop, first, axis=1)
    row = np.arange(num_slots - 1)
    not_target = is_given[:, 1:]
    query = _spans(
        np.where(not_target, row, first[:, 1:]), np.where(not_target, row + 1, run_start[:, 1:])
    )
    upper = _spans(
        np.where(not_target, row, first_target[:, 1:] - 1),
        np.where(not_target, row + 1, run_stop[:, 1:] - 1),
    )
    anchor = find_anchors(block, first)
    gap = np.where(block > 0, np.arange(num_slots) - 1 - anchor, 0)
    within = [_is_causal(spans, row, first[:, :-1]) | not_target for spans in (query, upper)]
    within.append(_is_causal(content, row, first[:, :-1]))
    return SortedWindows(
        order=order,
        document_start=first,
        is_target=~not_target,
        content=content,
        query=query,
        upper_query=upper,
        anchor=anchor,
        anchor_gap=gap,
        causal=all(bool(_is_causal(spans, row, 0).all()) for spans in (content, query, upper)),
        document_rows=_rows_of(lengths) if np.all(within) else None,
        left_to_right=_is_left_to_right(block, first),
    )


def find_anchors(
    block: Int64[np.ndarray, "b P"], first: Int64[np.ndarray, "b P"]
) -> Int64[np.ndarray, "b P"]:
    """The anchor of every position: max { j < p : block[j] < block[p] }, in p's document.

    A given token has no anchor; it gets its left neighbour, or itself where it opens a document.

    Most anchors are the left neighbour, and those are done at once. The others walk left, and one
    step at a time is too slow: the head of the second of two streams has N / 2 later tokens to
    its left. So the walk goes by powers of two, longest first, through running minima: a stride
    of 2^k is taken if no block in it is earlier than p's own. Every walk is over after log2 P
    looks, whatever the order. It cannot leave the document, whose first token is block 0, and
    for the same reason a batch is walked as one line.
    """
    num_slots = block.shape[1]
    flat_block = block.reshape(-1)
    anchor = np.maximum(np.arange(num_slots) - 1, first)
    anchor_idx = anchor.reshape(-1) + np.repeat(np.arange(len(block)) * num_slots, num_slots)
    unresolved = np.flatnonzero((flat_block[anchor_idx] >= flat_block) & (flat_block > 0))
    if len(unresolved) == 0:
        return anchor
    minima = [flat_block]
    while (stride := 1 << len(minima)) < num_slots:
        wider = minima[-1].copy()
        np.minimum(wider[stride // 2 :], minima[-1][: -stride // 2], out=wider[stride // 2 :])
        minima.append(wider)
    own_block, cursor = flat_block[unresolved], anchor_idx[unresolved]
    for exponent in reversed(range(len(minima))):
        cursor = cursor - np.where(minima[exponent][cursor] >= own_block, 1 << exponent, 0)
    anchor.reshape(-1)[unresolved] = cursor % num_slots
    return anchor


def _document_starts(
    lengths: Sequence[tuple[int, ...]], num_windows: int, num_slots: int
) -> Int64[np.ndarray, "b P"]:
    assert len(lengths) == num_windows, (len(lengths), num_windows)
    first = np.zeros((num_windows, num_slots), dtype=np.int64)
    for window, pieces in enumerate(lengths):
        assert sum(pieces) == num_slots, (pieces, num_slots)
        if len(pieces) > 1:
            first[window] = np.repeat(np.cumsum((0, *pieces[:-1])), pieces)
    return first


def _require_given_starts(block: np.ndarray, first: np.ndarray) -> None:
    opening = np.take_along_axis(block, first, axis=1)
    if block.min() < 0 or opening.any():
        what = "a negative block" if block.min() < 0 else f"block {opening.max()} there"
        raise OrderError(
            "blocks must be 0 or more and 0 (given) at the first token of every document, "
            f"got {what}: give each document one token of context"
        )


def _runs(key: Int64[np.ndarray, "b P"]) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of the run of equal keys around each slot of sorted rows."""
    num_slots = key.shape[1]
    slot = np.arange(num_slots)
    changes = key[:, 1:] != key[:, :-1]
    start = np.zeros_like(key)
    start[:, 1:] = np.where(changes, slot[1:], 0)
    np.maximum.accumulate(start, axis=1, out=start)
    stop = np.full_like(key, num_slots)
    stop[:, :-1] = np.where(changes, slot[1:], num_slots)
    backwards = stop[:, ::-1]
    np.minimum.accumulate(backwards, axis=1, out=backwards)
    return start, stop


def _spans(start: np.ndarray, stop: np.ndarray) -> KeySpans:
    return KeySpans(start=start.astype(np.int32), stop=stop.astype(np.int32))


def _is_causal(spans: KeySpans, row: np.ndarray, first: np.ndarray | int) -> np.ndarray:
    """Which rows see those from `first` to themselves."""
    return (spans.start == first) & (spans.stop == row + 1)


def _rows_of(lengths: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Rows of every document: a window has one less than tokens, its last document's."""
    rows = ((*pieces[:-1], pieces[-1] - 1) for pieces in lengths)
    return tuple(tuple(count for count in window if count > 0) for window in rows)


def _is_left_to_right(block: np.ndarray, first: np.ndarray) -> bool:
    opens = first[:, 1:] != first[:, :-1]
    return bool(((block[:, 1:] > block[:, :-1]) | opens).all())
