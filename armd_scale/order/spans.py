"""Which keys every row attends to, as one contiguous span of sorted slots per row.

Masked diffusion draws a masking time tau for every token, and its reverse process unmasks the
token that was masked last first. Only the order of those times enters the loss: sort the tokens by
tau, descending, call tokens of equal tau a block, and the objective becomes block-wise causal
prediction (Karami & Ghodsi, arXiv 2601.16971, Eq. 2)

    L = E_order  sum_p  -log P( x_p | { x_j : block[j] < block[p] } ).

A window of N + 1 tokens and one integer per token, its block (0 = given, 1..T = generated in that
order), therefore contain everything that attention needs. Sorted by (document, block, position),
every visible set is a *contiguous run of slots*: the tokens of earlier blocks of a document stand
directly before the own block, and the document starts at a known slot. A mask of (N + 1)^2 bits
shrinks to two integers per row; with blocks of one token each these are 0 and i + 1, which is
plain causal attention.

Rows and slots. `order[slot]` is the position in the window of the token that sorts to `slot`.
There are N rows of each kind:

* Content row i is slot i. It sees its own block: slots [start of document, end of own block). The
  last block of a window is context for no target, so the last slot, N, needs no row, and spans end
  at N.
* Query row i predicts the token of slot i + 1 from content rows. It must not see that token's
  block: slots [start of document, start of that block). Because the label is one slot ahead of the
  row, both spans equal [0, i + 1) for singleton blocks, and one causal kernel serves both streams.
* Upper query row i is query row i in the upper layers, where query rows attend to each other: from
  the row of the document's first target to the last row of the own block. Given tokens are no row's
  label, so in a document with g given tokens these spans start g - 1 rows after the document's
  first slot. (The rows of strictly earlier blocks end at `query.stop - 1`.)

Documents sort as units, so a document occupies the same range as slots and as positions. A query
row whose label is a given token predicts nothing; it sees only itself, [i, i + 1), so that no
softmax runs over an empty set.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Int32, Int64

ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True, eq=False)
class KeySpans(Generic[ArrayT]):
    """The keys that each row attends to: start <= j < stop; NumPy arrays, or tensors in batches."""

    start: Int32[ArrayT, "b rows"]
    stop: Int32[ArrayT, "b rows"]


@dataclass(frozen=True, eq=False)
class BlockRuns:
    """Where blocks and documents are among the sorted slots; P slots, N = P - 1 rows."""

    document_start: Int64[np.ndarray, "b P"]
    """First slot of the document of each slot."""
    start: Int64[np.ndarray, "b P"]
    """First slot of the block of each slot."""
    stop: Int64[np.ndarray, "b P"]
    """Slot after the block of each slot."""
    is_target: Bool[np.ndarray, "b N"]
    """Whether query row i has something to predict: slot i + 1 is not given."""


def find_runs(
    key: Int64[np.ndarray, "b P"],
) -> tuple[Int64[np.ndarray, "b P"], Int64[np.ndarray, "b P"]]:
    """Return start and stop of the run of equal keys around each slot of sorted rows."""
    num_slots: int = key.shape[1]
    slot = np.arange(num_slots)
    changes = key[:, 1:] != key[:, :-1]
    start = np.zeros_like(key)
    start[:, 1:] = np.where(changes, slot[1:], 0)
    # A run's start is written at its first slot only; the running maximum carries it on. Stops
    # likewise, from the right.
    np.maximum.accumulate(start, axis=1, out=start)
    stop = np.full_like(key, num_slots)
    stop[:, :-1] = np.where(changes, slot[1:], num_slots)
    from_right = stop[:, ::-1]
    np.minimum.accumulate(from_right, axis=1, out=from_right)
    return start, stop


def content_spans(runs: BlockRuns) -> KeySpans[np.ndarray]:
    """Return the content rows that content rows see: their document up to the own block's end."""
    num_rows = runs.is_target.shape[1]
    return _make_spans(runs.document_start[:, :-1], np.minimum(runs.stop[:, :-1], num_rows))


def query_spans(runs: BlockRuns) -> KeySpans[np.ndarray]:
    """Return the content rows that query rows see: their document before the label's block."""
    return _make_target_spans(runs, runs.document_start[:, 1:], runs.start[:, 1:])


def upper_query_spans(runs: BlockRuns) -> KeySpans[np.ndarray]:
    """Return the query rows that query rows see: targets up to the end of the label's block."""
    # A document's first run is its given tokens, so that run stops at the first target's slot; the
    # query row of a slot is one row before it.
    first_target = np.take_along_axis(runs.stop, runs.document_start, axis=1)
    return _make_target_spans(runs, first_target[:, 1:] - 1, runs.stop[:, 1:] - 1)


def is_causal(
    spans: KeySpans[np.ndarray], start: Int64[np.ndarray, "b N"] | int
) -> Bool[np.ndarray, "b N"]:
    """Return which rows see exactly the rows from `start` to themselves."""
    num_rows: int = spans.stop.shape[1]
    row = np.arange(num_rows)
    return (spans.start == start) & (spans.stop == row + 1)


def _make_target_spans(
    runs: BlockRuns, start: np.ndarray, stop: np.ndarray
) -> KeySpans[np.ndarray]:
    """Return the spans of rows with a target, and [i, i + 1) for the rows without one."""
    num_rows: int = runs.is_target.shape[1]
    row = np.arange(num_rows)
    return _make_spans(
        np.where(runs.is_target, start, row), np.where(runs.is_target, stop, row + 1)
    )


def _make_spans(start: np.ndarray, stop: np.ndarray) -> KeySpans[np.ndarray]:
    return KeySpans(start=start.astype(np.int32), stop=stop.astype(np.int32))
