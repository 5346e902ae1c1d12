"""`ArmdBatch`: everything that the model gets from the data.

Tokens are sorted by generation order here, once, and each row carries what the model needs: its
position, its label and the keys it may attend to. The rows are never sorted back, because the loss
is a sum over rows and does not depend on their order. `armd_scale.order.sort` defines slots and
which row sees which slots.
"""

# torch's own annotations leave `from_numpy` and `tolist` partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from armd_scale.order.sort import sort_by_block
from armd_scale.order.spans import KeySpans


@dataclass(frozen=True, eq=False)
class ArmdBatch:
    """A micro-batch of b windows: C content rows, Q query rows, P positions.

    In training, a window of P = N + 1 tokens has C = Q = N: content row i is slot i, and query row
    i predicts the token of slot i + 1. In decoding, C and Q are the rows that a round needs.
    """

    tokens: Int64[Tensor, "b C"]
    """Content tokens."""
    positions: Int64[Tensor, "b C"]
    """Position of each content token in its document: the rotary position of content rows."""
    labels: Int64[Tensor, "b Q"]
    """The token that each query row predicts."""
    is_target: Bool[Tensor, "b Q"]
    """False where the label is a given token, which does not count in the loss."""
    label_positions: Int64[Tensor, "b Q"]
    """Position p of each label in its document, at least 1; the rotary position of a query row is
    p - 1. (Only a row that is not a target could have p = 0; it gets 1.)"""
    anchor_tokens: Int64[Tensor, "b Q"]
    """The nearest token to the left of each label that the label's row may see."""
    anchor_gaps: Int64[Tensor, "b Q"]
    """Number of unseen tokens between anchor and label, not clamped."""
    content: KeySpans[Tensor]
    """Content rows seen by content rows."""
    query: KeySpans[Tensor]
    """Content rows seen by query rows."""
    upper: KeySpans[Tensor]
    """Query rows seen by query rows, own block included; those of strictly earlier blocks are
    upper.start <= j < query.stop - 1 (of targets)."""
    order: Int64[Tensor, "b P"]
    """Position in the window of the token in each slot."""
    block: Int32[Tensor, "b P"]
    """Generation block, by position in the window."""
    is_plain_causal: bool
    """Whether all three spans of all rows are [0, i + 1)."""
    document_rows: tuple[tuple[int, ...], ...] | None
    """For each window the numbers of rows of its documents, if every target row sees exactly the
    rows of its document up to itself; None for all other batches."""
    is_left_to_right: bool
    """Whether all windows are in their natural order, one token per block."""
    sample_index: Int64[Tensor, " b"]
    """Index of each sample in the run."""

    def to(self, device: torch.device | str) -> "ArmdBatch":
        """Return the batch on `device`; from pinned memory the copy is asynchronous."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def left_to_right_subset(self) -> tuple[Bool[Tensor, " b"], "ArmdBatch"]:
        """Select the samples in their natural order, one token per block.

        Only for training windows, in which the first tokens of documents are the only given ones.

        Returns:
            Which samples are selected, and the batch of these samples.
        """
        # Block 0 after the first position is the start of a further document, where blocks begin
        # again. Everywhere else a left-to-right order has strictly increasing blocks.
        is_start = self.block[:, 1:] == 0
        is_selected = (is_start | (self.block[:, 1:] > self.block[:, :-1])).all(dim=1)
        subset = _map_tensors(self, lambda tensor: tensor[is_selected])
        has_one_document = not bool(is_start[is_selected].any())
        rows = self.document_rows
        if rows is not None:
            rows = tuple(itertools.compress(rows, is_selected.tolist()))
        return is_selected, replace(
            subset,
            is_left_to_right=True,
            # The batch may have lost its windows with several documents or another order.
            is_plain_causal=self.is_plain_causal or has_one_document,
            document_rows=rows,
        )

    def pin_memory(self) -> "ArmdBatch":
        """Return the batch in page-locked memory; DataLoader calls the method of this name."""
        return _map_tensors(self, Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all tensors as one buffer.

        A tensor from a worker process costs the trainer a file descriptor, however many bytes it
        has: a batch takes 0.3 ms to receive as one buffer, and 1.7 ms as 17 tensors.
        """
        buffer, layout = _pack(list(_tensors_of(self)))
        other_fields = {name: getattr(self, name) for name in _NON_TENSOR_FIELDS}
        return _unpack, (buffer, layout, other_fields)


def make_batch(
    tokens: Int[np.ndarray, "b P"],
    block: Int[np.ndarray, "b P"],
    *,
    lengths: Sequence[tuple[int, ...]],
    sample_index: Int[np.ndarray, " b"],
) -> ArmdBatch:
    """Sort windows of P = N + 1 tokens by their blocks into a batch of N rows.

    Args:
        tokens: tokens by position in the window.
        block: generation block by position. Block 0 holds the given tokens, among them the first
            token of every document; the other blocks need not be numbered without gaps.
        lengths: for each window the lengths of its documents in tokens, which sum to P.
        sample_index: index of each sample in the run.

    Raises:
        OrderError: a block is negative, or the first token of a document is not given.
    """
    sorted_ = sort_by_block(block, lengths)
    by_slot = np.take_along_axis(tokens, sorted_.order, axis=1)
    positions = sorted_.order - sorted_.document_start
    # Row i predicts the token of slot i + 1, so per-row values are those at the position of its
    # label.
    label_position_index = sorted_.order[:, 1:]
    anchor = np.take_along_axis(sorted_.anchor, label_position_index, axis=1)
    return ArmdBatch(
        tokens=_to_int64(by_slot[:, :-1]),
        positions=_to_int64(positions[:, :-1]),
        labels=_to_int64(by_slot[:, 1:]),
        is_target=torch.from_numpy(sorted_.is_target),
        label_positions=_to_int64(np.maximum(positions[:, 1:], 1)),
        anchor_tokens=_to_int64(np.take_along_axis(tokens, anchor, axis=1)),
        anchor_gaps=_to_int64(np.take_along_axis(sorted_.anchor_gap, label_position_index, axis=1)),
        content=_visible(sorted_.content),
        query=_visible(sorted_.query),
        upper=_visible(sorted_.upper_query),
        order=_to_int64(sorted_.order),
        block=torch.from_numpy(block.astype(np.int32)),
        is_plain_causal=sorted_.causal,
        document_rows=sorted_.document_rows,
        is_left_to_right=sorted_.left_to_right,
        sample_index=_to_int64(sample_index),
    )


# Fields of ArmdBatch that are not tensors. They describe the batch as a whole, so that the model
# can choose an attention kernel without reading a tensor back from the GPU.
_NON_TENSOR_FIELDS = ("is_plain_causal", "document_rows", "is_left_to_right")


def _to_int64(array: np.ndarray) -> Tensor:
    # astype always copies: the batch must not share memory with a shard or with the caller.
    return torch.from_numpy(array.astype(np.int64, order="C"))


def _visible(spans: KeySpans[np.ndarray]) -> KeySpans[Tensor]:
    return KeySpans(start=torch.from_numpy(spans.start), stop=torch.from_numpy(spans.stop))


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Copy a dataclass of tensors, nested or not, with `function` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if not isinstance(value, ArmdBatch | KeySpans):
        return value  # flags and the lengths of documents
    return cast(Any, type(value))(
        **{
            field.name: _map_tensors(getattr(value, field.name), function)
            for field in fields(value)
        }
    )


def _tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a dataclass, nested or not, in the order of its fields."""
    for part in (getattr(value, field.name) for field in fields(value)):
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, KeySpans):
            yield from _tensors_of(part)


def _pack(tensors: Sequence[Tensor]) -> tuple[Tensor, list[tuple[torch.dtype, tuple[int, ...]]]]:
    """Concatenate the bytes of tensors; return the buffer, and the dtype and shape of each tensor.

    Each tensor starts at a multiple of 8 bytes: only an aligned range can be viewed as int64 again.
    """
    parts: list[Tensor] = []
    for tensor in tensors:
        data = tensor.contiguous().view(torch.uint8).flatten()
        parts += [data, data.new_zeros(-len(data) % 8)]  # padding to the next multiple of 8
    return torch.cat(parts), [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]


def _unpack(
    buffer: Tensor,
    layout: Sequence[tuple[torch.dtype, tuple[int, ...]]],
    other_fields: dict[str, Any],
) -> ArmdBatch:
    """Make the batch that was packed; its tensors are views of the buffer."""
    tensors: list[Tensor] = []
    start = 0
    for dtype, shape in layout:
        stop = start + math.prod(shape) * dtype.itemsize
        tensors.append(buffer[start:stop].view(dtype).view(shape))
        start = stop + -stop % 8
    # In the order of `_tensors_of`: the fields in order, a span as its start and its stop.
    remaining = iter(tensors)
    values = dict(other_fields)
    for field in fields(ArmdBatch):
        if field.type == KeySpans[Tensor]:
            values[field.name] = KeySpans(start=next(remaining), stop=next(remaining))
        elif field.name not in values:
            values[field.name] = next(remaining)
    return ArmdBatch(**values)
