"""`ArmdBatch`: all that crosses from data to model.

Tokens are sorted by generation order here, once, and everything a row needs to know travels with
it: its position, its label, what it sees. Nothing is ever unsorted, because the loss is a sum
over rows and does not care in which order they come. `armd_scale.order.sort` tells what a
slot is and which row sees which slots.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from armd_scale.order.sort import sort_by_block
from armd_scale.order.spans import KeySpans


@dataclass(frozen=True, eq=False)
class ArmdBatch:
    """A micro-batch of b windows: C content rows, Q query rows, P positions.

    In training a window of P = N + 1 tokens has C = Q = N: content row i is slot i, query row i
    predicts the token of slot i + 1. Decoding feeds whatever rows a round needs.
    """

    tokens: Int64[Tensor, "b C"]
    """Content tokens."""
    positions: Int64[Tensor, "b C"]
    """Position of each content token in its document: the rotary position of content rows."""
    labels: Int64[Tensor, "b Q"]
    """The token that each query row predicts."""
    is_target: Bool[Tensor, "b Q"]
    """False where the label is a given token, which counts in no loss."""
    label_positions: Int64[Tensor, "b Q"]
    """Position p of each label in its document, at least 1; a query row's rotary position is
    p - 1. (Only a row without target could stand at 0, and it is moved to 1.)"""
    anchor_tokens: Int64[Tensor, "b Q"]
    """The nearest token to the left of each label that its row may see."""
    anchor_gaps: Int64[Tensor, "b Q"]
    """How many unseen tokens lie between anchor and label; unclamped."""
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
    """For each window the rows of its documents, where rows with a target see all rows of their
    document up to themselves; None elsewhere."""
    is_left_to_right: bool
    """Whether all windows are in their natural order, one token a block."""
    sample_index: Int64[Tensor, " b"]
    """Number of each sample in its run."""

    def to(self, device: torch.device | str) -> "ArmdBatch":
        """The same batch on `device`; from pinned memory the copy does not wait."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def left_to_right_subset(self) -> tuple[Bool[Tensor, " b"], "ArmdBatch"]:
        """Which samples are in their natural order, one token a block; and the batch of those.

        Of training windows, whose only given tokens are those that open documents.
        """
        opens = self.block[:, 1:] == 0
        samples = (opens | (self.block[:, 1:] > self.block[:, :-1])).all(dim=1)
        part = _map_tensors(self, lambda tensor: tensor[samples])
        one_document = not bool(opens[samples].any())
        rows = self.document_rows
        if rows is not None:
            rows = tuple(itertools.compress(rows, samples.tolist()))
        causal = self.is_plain_causal or one_document
        return samples, replace(
            part, is_left_to_right=True, is_plain_causal=causal, document_rows=rows
        )

    def pin_memory(self) -> "ArmdBatch":
        """The same batch in page-locked memory (the name is the one that DataLoader calls)."""
        return _map_tensors(self, Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles all tensors as one buffer.

        What a tensor costs on its way from a worker process is a file descriptor, not its bytes:
        as one buffer a batch takes the trainer's thread 0.3 ms to receive, as 17 tensors 1.7.
        """
        buffer, layout = _pack(list(_tensors_of(self)))
        flags = {name: getattr(self, name) for name in _NON_TENSOR_FIELDS}
        return _unpack, (buffer, layout, flags)


def make_batch(
    tokens: Int[np.ndarray, "b P"],
    block: Int[np.ndarray, "b P"],
    *,
    lengths: Sequence[tuple[int, ...]],
    sample_index: Int[np.ndarray, " b"],
) -> ArmdBatch:
    """Sorts windows of P = N + 1 tokens by their blocks into a batch of N rows.

    Args:
        tokens: tokens by position in the window.
        block: generation block by position: 0 is given (so is the first token of every document),
            ids need not be dense.
        lengths: for each window the lengths of its documents in tokens, which sum to P.
        sample_index: number of each window in its run.

    Raises:
        OrderError: a negative block, or a document whose first token is not given.
    """
    sorted_ = sort_by_block(block, lengths)
    by_slot = np.take_along_axis(tokens, sorted_.order, axis=1)
    positions = sorted_.order - sorted_.document_start
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


_NON_TENSOR_FIELDS = ("causal", "document_rows", "left_to_right")
"""What of a batch is no tensor."""


def _to_int64(array: np.ndarray) -> Tensor:
    # A copy, always: the batch must not share memory with a shard or with the caller.
    return torch.from_numpy(array.astype(np.int64, order="C"))


def _visible(spans: KeySpans[np.ndarray]) -> KeySpans[Tensor]:
    return KeySpans(start=torch.from_numpy(spans.start), stop=torch.from_numpy(spans.stop))


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a dataclass of tensors, nested or not, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if value is None or isinstance(value, bool | tuple):
        return value
    return type(value)(
        **{field.name: _map_tensors(getattr(value, field.name), change) for field in fields(value)}
    )


def _tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a dataclass, nested or not, in the order of its fields."""
    for part in (getattr(value, field.name) for field in fields(value)):
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, KeySpans):
            yield from _tensors_of(part)


def _pack(tensors: Sequence[Tensor]) -> tuple[Tensor, list[tuple[torch.dtype, tuple[int, ...]]]]:
    """The bytes of tensors on end, each starting at a multiple of 8, with dtypes and shapes."""
    parts = []
    for tensor in tensors:
        data = tensor.contiguous().view(torch.uint8).flatten()
        parts += [data, data.new_zeros(-len(data) % 8)]
    return torch.cat(parts), [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]


def _unpack(
    buffer: Tensor,
    layout: Sequence[tuple[torch.dtype, tuple[int, ...]]],
    flags: dict[str, Any],
) -> ArmdBatch:
    """The batch that was packed; its tensors are views of the buffer."""
    tensors, begin = [], 0
    for dtype, shape in layout:
        end = begin + math.prod(shape) * dtype.itemsize
        tensors.append(buffer[begin:end].view(dtype).view(shape))
        begin = end + -end % 8
    left = iter(tensors)
    parts = dict(flags)
    for field in fields(ArmdBatch):
        if field.type == KeySpans[Tensor]:
            parts[field.name] = KeySpans(start=next(left), stop=next(left))
        elif field.name not in parts:
            parts[field.name] = next(left)
    return ArmdBatch(**parts)
