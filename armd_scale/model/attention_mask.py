"""Attention masks as intervals of slots, and in the formats that attention kernels take.

Rows are sorted by slot, so the keys that a row sees are one interval start <= key < stop. (It is a
prefix, except with packed documents, whose keys start at their first row.) Two integers per row are
therefore the whole mask. With singleton blocks and one document per sample no mask is needed at
all: content row i and query row i both see keys 0..i, which is plain causal attention.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import no_type_check

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from armd_scale.data.batch import ArmdBatch
from armd_scale.model.kv_cache import KeyValueCache

FLEX_BLOCK = 128  # FlexAttention's default tile, in rows and in keys


@dataclass(frozen=True, eq=False)
class IntervalMask:
    """The keys visible to each row.

    Args:
        start: first visible key of each row.
        stop: one past the last visible key.
        num_keys: number of keys.
        extra_key: one more visible key per row: its own, if `model.upper_visibility` is `self`.
        document_rows: for each sample the number of rows of its documents, if every row with a
            target sees all keys of its document up to its own row, in each stream; else None.
    """

    start: Int[Tensor, "batch rows"]
    stop: Int[Tensor, "batch rows"]
    num_keys: int
    extra_key: Int[Tensor, "*batch rows"] | None = None
    document_rows: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def dense(self) -> Bool[Tensor, "batch 1 rows keys"]:
        """The boolean mask for scaled_dot_product_attention, broadcast over heads."""
        key = torch.arange(self.num_keys, device=self.start.device)
        visible = (key >= self.start.unsqueeze(-1)) & (key < self.stop.unsqueeze(-1))
        if self.extra_key is not None:
            visible = visible | (key == self.extra_key.unsqueeze(-1))
        return visible.unsqueeze(1)

    @cached_property
    def blocks(self) -> BlockMask:
        """FlexAttention's BlockMask, computed from the intervals alone.

        `create_block_mask` would evaluate the mask for all rows x keys (3970 ms against 19 ms). A
        tile of rows x keys can be classified by the extremes of its rows' intervals: empty (skipped
        by the kernel) if no interval reaches it, full (computed without a mask) if every interval
        covers it, and partial (masked by `_mask_mod` per element) otherwise.
        """
        start_min, start_max = _tile_extremes(self.start)
        stop_min, stop_max = _tile_extremes(self.stop)
        key_start = torch.arange(0, self.num_keys, FLEX_BLOCK, device=self.start.device)
        # Not clipped to num_keys: a short last tile then never counts as full, so that the kernel
        # checks its bounds.
        key_stop = key_start + FLEX_BLOCK
        touched = (key_start < stop_max.unsqueeze(-1)) & (key_stop > start_min.unsqueeze(-1))
        full = (key_start >= start_max.unsqueeze(-1)) & (key_stop <= stop_min.unsqueeze(-1))
        if self.extra_key is not None:
            # Touched may be too large (extra keys of a tile need not be adjacent), which costs a
            # masked tile but is never wrong.
            extra_min, extra_max = _tile_extremes(self.extra_key.expand_as(self.start))
            touched |= (key_start <= extra_max.unsqueeze(-1)) & (key_stop > extra_min.unsqueeze(-1))
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

    @no_type_check  # torch.compile traces this function, and cannot trace a shape checker
    def _mask_mod(self, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        """Return whether a row sees a key: FlexAttention's mask_mod."""
        visible = (key >= self.start[batch, row]) & (key < self.stop[batch, row])
        return visible if self.extra_key is None else visible | (key == self.extra_key[row])


def _tile_extremes(
    values: Int[Tensor, "batch rows"],
) -> tuple[Int[Tensor, "batch 1 tiles"], Int[Tensor, "batch 1 tiles"]]:
    """Return the minimum and maximum over each tile of FLEX_BLOCK rows."""
    batch, rows = values.shape
    num_missing = -rows % FLEX_BLOCK
    # Pad a short last tile with its last row, which changes neither extreme.
    padded = torch.cat((values, values[:, -1:].expand(batch, num_missing)), dim=1)
    tiles = padded.view(batch, 1, -1, FLEX_BLOCK)
    return tiles.amin(dim=-1), tiles.amax(dim=-1)


def _block_indices(
    tiles: Bool[Tensor, "batch 1 row_tiles key_tiles"],
) -> tuple[
    Int[Tensor, "batch 1 row_tiles"],
    Int[Tensor, "batch 1 row_tiles key_tiles"],
]:
    """Return the number of set key tiles per row tile, and their indices first and in order.

    FlexAttention reads only the first `count` indices; a stable descending sort of 0/1 puts the set
    ones first without moving them past one another.
    """
    count = tiles.sum(dim=-1, dtype=torch.int32)
    index = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count, index


@dataclass(frozen=True)
class LayerMasks:
    """The masks of one forward pass; each is None if plain causal attention is equivalent.

    Args:
        two_stream: content rows, then query rows, over content keys.
        query_only: query rows over content keys (the last two-stream layer).
        upper: query rows over query keys.
    """

    two_stream: IntervalMask | None = None
    query_only: IntervalMask | None = None
    upper: IntervalMask | None = None


def layer_masks(
    batch: ArmdBatch, cache: KeyValueCache | None, *, upper_sees_block: bool
) -> LayerMasks:
    """Return the masks that a forward pass needs: none for a plain causal batch without a cache."""
    if batch.is_plain_causal and cache is None:
        return LayerMasks()
    return build_masks(batch, cache, upper_sees_block=upper_sees_block)


def build_masks(
    batch: ArmdBatch, cache: KeyValueCache | None, *, upper_sees_block: bool
) -> LayerMasks:
    """Return the masks of a batch, also where causal attention would be equivalent.

    Args:
        batch: its intervals count cached keys if there is a cache.
        cache: keys of earlier rounds.
        upper_sees_block: an upper row sees its whole block (`model.upper_visibility: block`);
            otherwise only earlier blocks and itself.
    """
    content, query, upper = batch.content, batch.query, batch.upper
    if cache is None:
        num_content_keys, num_query_keys = batch.tokens.shape[1], batch.labels.shape[1]
        self_key = torch.arange(num_query_keys, device=batch.labels.device)
    else:
        num_content_keys, num_query_keys = cache.num_content_keys, cache.num_query_keys
        self_key = cache.query_slots
    # Cached keys are not grouped by document.
    document_rows = batch.document_rows if cache is None else None
    return LayerMasks(
        two_stream=IntervalMask(
            torch.cat((content.start, query.start), dim=1),
            torch.cat((content.stop, query.stop), dim=1),
            num_keys=num_content_keys,
            document_rows=document_rows,
        ),
        query_only=IntervalMask(
            query.start, query.stop, num_keys=num_content_keys, document_rows=document_rows
        ),
        upper=IntervalMask(
            upper.start,
            # `query.stop` counts content slots, of which slot 0 (given) has no query row: query
            # row i is the target in slot i + 1. So earlier blocks end one query row earlier.
            upper.stop if upper_sees_block else query.stop - 1,
            num_keys=num_query_keys,
            extra_key=None if upper_sees_block else self_key,
            document_rows=document_rows,
        ),
    )
