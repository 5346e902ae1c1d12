"""Sort windows by generation order, once, before they reach the model.

`order.spans` explains what a slot is and which rows see which slots. Besides the spans, a query row
needs its anchor, the nearest visible token to the left of its label: it starts from that embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64

from armd_scale.errors import OrderError
from armd_scale.order.spans import (
    BlockRuns,
    KeySpans,
    content_spans,
    find_runs,
    is_causal,
    query_spans,
    upper_query_spans,
)


@dataclass(frozen=True, eq=False)
class SortedWindows:
    """Windows sorted by generation order; P = N + 1 positions (or slots), N rows."""

    order: Int64[np.ndarray, "b P"]
    """Position in the window of the token in each slot."""
    document_start: Int64[np.ndarray, "b P"]
    """First slot of the document of each slot; equally first position, by position."""
    is_target: Bool[np.ndarray, "b N"]
    """Whether query row i has something to predict: slot i + 1 is not given."""
    content: KeySpans[np.ndarray]
    """Content rows seen by content rows."""
    query: KeySpans[np.ndarray]
    """Content rows seen by query rows."""
    upper_query: KeySpans[np.ndarray]
    """Query rows seen by query rows, in upper layers."""
    anchor: Int64[np.ndarray, "b P"]
    """Nearest visible token to the left, by position: max { j < p : block[j] < block[p] }."""
    anchor_gap: Int64[np.ndarray, "b P"]
    """Number of unseen tokens between anchor and p, p - 1 - anchor, by position; 0 if given."""
    causal: bool
    """Whether all spans are [0, i + 1): one document of singleton blocks after one given token."""
    document_rows: tuple[tuple[int, ...], ...] | None
    """Numbers of rows of each window's documents, if within its document every row with a target
    sees exactly the rows up to itself (singleton blocks, one given token each); else None."""
    left_to_right: bool
    """Whether nothing moved: every document has one given token, then ever later blocks."""


def sort_by_block(
    block: Int[np.ndarray, "b P"], lengths: Sequence[tuple[int, ...]]
) -> SortedWindows:
    """Sort windows by (document, block, position) and compute what each row sees.

    Args:
        block: generation block by position; any ids >= 0, dense or not, with given tokens (block 0)
            anywhere. The first token of every document must be given.
        lengths: for each window the lengths of its documents in tokens, which sum to P.

    Raises:
        OrderError: a negative block, or a document whose first token is not given.
    """
    num_windows: int
    num_slots: int
    num_windows, num_slots = block.shape
    document_start = _document_starts(lengths, num_windows, num_slots)
    _require_given_starts(block, document_start)
    block = block.astype(np.int64, copy=False)
    # One integer that sorts by document, then block; the stable sort keeps positions in order.
    key = document_start * (block.max() + 1) + block
    order = np.argsort(key, axis=1, kind="stable")
    run_start, run_stop = find_runs(np.take_along_axis(key, order, axis=1))
    is_target = (np.take_along_axis(block, order, axis=1) != 0)[:, 1:]
    runs = BlockRuns(document_start, run_start, run_stop, is_target)
    content, query, upper = content_spans(runs), query_spans(runs), upper_query_spans(runs)
    anchor = find_anchors(block, document_start)
    own_start = document_start[:, :-1]
    within_documents = is_causal(content, own_start).all() and all(
        (is_causal(spans, own_start) | ~is_target).all() for spans in (query, upper)
    )
    return SortedWindows(
        order=order,
        document_start=document_start,
        is_target=is_target,
        content=content,
        query=query,
        upper_query=upper,
        anchor=anchor,
        anchor_gap=np.where(block > 0, np.arange(num_slots) - 1 - anchor, 0),
        causal=all(bool(is_causal(spans, 0).all()) for spans in (content, query, upper)),
        document_rows=_document_rows(lengths) if within_documents else None,
        left_to_right=_is_left_to_right(block, document_start),
    )


def find_anchors(
    block: Int64[np.ndarray, "b P"], document_start: Int64[np.ndarray, "b P"]
) -> Int64[np.ndarray, "b P"]:
    """Return the anchor of every position: max { j < p : block[j] < block[p] }, in p's document.

    A given token has no anchor; it gets its left neighbor, or itself where it opens a document.

    Most anchors are the left neighbor and are resolved in one comparison. The others must search to
    the left, and one position at a time is too slow: the head of the second of two streams has
    N / 2 later tokens on its left. The search therefore jumps by powers of two, longest first,
    using minima over 2^k positions: by 2^k where no block in that range is earlier than its own.
    Every search ends after log2(P) comparisons, whatever the order.
    """
    num_slots: int = block.shape[1]
    # A search cannot leave its document, whose first token is block 0 and so earlier than any
    # target. Windows start with a document, so all windows are searched as one flat array.
    flat_block = block.reshape(-1)
    anchor = np.maximum(np.arange(num_slots) - 1, document_start)
    anchor_index = anchor.reshape(-1) + np.repeat(np.arange(len(block)) * num_slots, num_slots)
    unresolved = np.flatnonzero((flat_block[anchor_index] >= flat_block) & (flat_block > 0))
    if len(unresolved) == 0:
        return anchor
    # minima[k][i] is the smallest of the 2^k blocks that end at i.
    # Jumps of 1, 2, .., 2^K, with 2^K < P <= 2^(K+1), add up to 2^(K+1) - 1 >= P - 1: the search
    # can reach every position of a window.
    minima = [flat_block]
    while (width := 1 << len(minima)) < num_slots:
        wider = minima[-1].copy()
        np.minimum(wider[width // 2 :], minima[-1][: -width // 2], out=wider[width // 2 :])
        minima.append(wider)
    own_block, cursor = flat_block[unresolved], anchor_index[unresolved]
    for exponent in reversed(range(len(minima))):
        cursor = cursor - np.where(minima[exponent][cursor] >= own_block, 1 << exponent, 0)
    anchor.reshape(-1)[unresolved] = cursor % num_slots
    return anchor


def _document_starts(
    lengths: Sequence[tuple[int, ...]], num_windows: int, num_slots: int
) -> Int64[np.ndarray, "b P"]:
    assert len(lengths) == num_windows, (len(lengths), num_windows)
    document_start = np.zeros((num_windows, num_slots), dtype=np.int64)
    for window, documents in enumerate(lengths):
        assert sum(documents) == num_slots, (documents, num_slots)
        if len(documents) > 1:
            document_start[window] = np.repeat(np.cumsum((0, *documents[:-1])), documents)
    return document_start


def _require_given_starts(block: np.ndarray, document_start: np.ndarray) -> None:
    first_block = np.take_along_axis(block, document_start, axis=1)
    if block.min() < 0:
        raise OrderError(f"blocks must be >= 0 (got {block.min()})")
    if first_block.any():
        raise OrderError(
            "the first token of every document must be given, block 0 "
            f"(got block {first_block.max()}): give each document one token of context"
        )


def _document_rows(lengths: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Return the number of rows of every document.

    A window has one row fewer than tokens; the missing one is its last document's.
    """
    rows = ((*documents[:-1], documents[-1] - 1) for documents in lengths)
    return tuple(tuple(count for count in window if count > 0) for window in rows)


def _is_left_to_right(block: np.ndarray, document_start: np.ndarray) -> bool:
    opens_document = document_start[:, 1:] != document_start[:, :-1]
    return bool(((block[:, 1:] > block[:, :-1]) | opens_document).all())
