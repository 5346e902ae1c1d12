"""Which keys a row of queries sees, as intervals of slots, and as the masks kernels want.

Rows are sorted by slot, so the keys that a row sees are one interval start <= key < stop (a prefix,
but for packed documents, which start late). Two integers a row are the whole mask. The fast path
needs no mask at all: with singleton blocks content row i and query row i both see keys 0..i.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import no_type_check

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

FLEX_BLOCK = 128


@dataclass(frozen=True, eq=False)
class IntervalMask:
    """Keys visible to each row of queries.

    Args:
        start: first visible key of each row.
        stop: one past the last visible key.
        num_keys: number of keys.
        diagonal: key that a row sees besides its interval, or None: its own, where
            `model.upper_visibility` is `self`.
        document_rows: for each sample the rows of its documents, where each stream's rows with a
            target see all keys of their document up to their own; None elsewhere.
    """

    start: Int[Tensor, "batch rows"]
    stop: Int[Tensor, "batch rows"]
    num_keys: int
    extra_key: Int[Tensor, "*batch rows"] | None = None
    document_rows: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def dense(self) -> Bool[Tensor, "batch 1 rows keys"]:
        """The boolean mask for scaled_dot_product_attention, with a dimension for heads."""
        key = torch.arange(self.num_keys, device=self.start.device)
        visible = (key >= self.start.unsqueeze(-1)) & (key < self.stop.unsqueeze(-1))
        if self.extra_key is not None:
            visible = visible | (key == self.extra_key.unsqueeze(-1))
        return visible.unsqueeze(1)

    @cached_property
    def blocks(self) -> BlockMask:
        """FlexAttention's BlockMask, from the intervals alone.

        `create_block_mask` would evaluate rows x keys; here a tile is judged by the extremes of its
        rows' intervals: empty where no interval reaches it, full where every interval covers it,
        partial (decided per element) otherwise.
        """
        start_low, start_high = _extremes(self.start)
        stop_low, stop_high = _extremes(self.stop)
        first_key = torch.arange(0, self.num_keys, FLEX_BLOCK, device=self.start.device)
        end_key = first_key + FLEX_BLOCK  # so a short last tile is never full
        touched = (first_key < stop_high.unsqueeze(-1)) & (end_key > start_low.unsqueeze(-1))
        full = (first_key >= start_high.unsqueeze(-1)) & (end_key <= stop_low.unsqueeze(-1))
        if self.extra_key is not None:
            low, high = _extremes(self.extra_key.expand_as(self.start))
            touched |= (first_key <= high.unsqueeze(-1)) & (end_key > low.unsqueeze(-1))
        partial_count, partial_index = _block_indices(touched & ~full)
        full_count, full_index = _block_indices(full)
        return BlockMask.from_kv_blocks(
            partial_count,
            partial_index,
            full_count,
            full_index,
            BLOCK_SIZE=FLEX_BLOCK,
            mask_mod=self._mask_mod,
            seq_lengths=(self.start.shape[1], self.num_keys),
        )

    @no_type_check  # torch.compile traces it, and cannot trace a checker of shapes
    def _mask_mod(self, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        """Whether a row sees a key: FlexAttention's mask_mod."""
        visible = (key >= self.start[batch, row]) & (key < self.stop[batch, row])
        return visible if self.extra_key is None else visible | (key == self.extra_key[row])


def _extremes(values: Int[Tensor, "batch rows"]) -> tuple[Tensor, Tensor]:
    """Minimum and maximum over each tile of FLEX_BLOCK rows: [batch, 1, tiles] each."""
    batch, rows = values.shape
    missing = -rows % FLEX_BLOCK
    # A short last tile repeats its last row, which changes neither extreme.
    padded = torch.cat((values, values[:, -1:].expand(batch, missing)), dim=1)
    tiles = padded.view(batch, 1, -1, FLEX_BLOCK)
    return tiles.amin(dim=-1), tiles.amax(dim=-1)


def _block_indices(tiles: Bool[Tensor, "batch 1 row_tiles key_tiles"]) -> tuple[Tensor, Tensor]:
    """How many key tiles are set for each row tile, and which, set ones first and in order."""
    count = tiles.sum(dim=-1, dtype=torch.int32)
    index = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count, index


@dataclass(frozen=True)
class LayerMasks:
    """The masks of one forward; each is None where plain causal attention is the same.

    Args:
        two_stream: content rows, then query rows, over content keys.
        query_only: query rows over content keys (the last two-stream layer).
        upper: query rows over query keys.
    """

    two_stream: IntervalMask | None
    query_only: IntervalMask | None
    upper: IntervalMask | None
