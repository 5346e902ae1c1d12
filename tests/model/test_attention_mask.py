"""Interval masks: the dense form, and the tiles of FlexAttention's BlockMask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from armd_scale.model.attention_mask import FLEX_BLOCK, IntervalMask, build_masks
from tests.support.windows import draw_windows

SIZES = st.integers(1, 3 * FLEX_BLOCK + 5)


def reference_mask(mask: IntervalMask) -> Tensor:
    """Return [batch, rows, keys], filled row by row."""
    visible = np.zeros((*mask.start.shape, mask.num_keys), dtype=bool)
    for b, row in np.ndindex(*mask.start.shape):
        visible[b, row, mask.start[b, row] : mask.stop[b, row]] = True
        if mask.extra_key is not None:
            visible[b, row, mask.extra_key[row]] = True
    return torch.from_numpy(visible)


def tile_mask(count: Tensor | None, index: Tensor | None) -> Tensor:
    """Return [batch, row_tiles, key_tiles]: the tiles that a kernel would visit."""
    assert count is not None
    assert index is not None
    chosen = torch.arange(index.shape[-1]) < count.unsqueeze(-1)
    out = torch.zeros_like(index, dtype=torch.bool)
    return out.scatter(-1, index.long(), chosen).squeeze(1)


def expand_tiles(tile: Tensor, rows: int, keys: int) -> Tensor:
    wide = tile.repeat_interleave(FLEX_BLOCK, dim=1).repeat_interleave(FLEX_BLOCK, dim=2)
    return wide[:, :rows, :keys]


def mask_seen_by_kernel(blocks: BlockMask, batch: int) -> Tensor:
    """Return [batch, rows, keys]: full tiles, and partial tiles under the mask function."""
    rows, keys = blocks.seq_lengths
    partial = expand_tiles(tile_mask(blocks.kv_num_blocks, blocks.kv_indices), rows, keys)
    full = expand_tiles(tile_mask(blocks.full_kv_num_blocks, blocks.full_kv_indices), rows, keys)
    assert not (partial & full).any()
    b, row, key = torch.meshgrid(*map(torch.arange, (batch, rows, keys)), indexing="ij")
    seen = blocks.mask_mod(b, torch.zeros_like(b), row, key)
    return full | (partial & seen)


def backward_tiles(blocks: BlockMask) -> tuple[Tensor, Tensor]:
    """Return the partial and full tiles of the backward kernel, [batch, row_tiles, key_tiles]."""
    partial = tile_mask(blocks.q_num_blocks, blocks.q_indices).mT
    return partial, tile_mask(blocks.full_q_num_blocks, blocks.full_q_indices).mT


def assert_correct(mask: IntervalMask) -> None:
    dense = reference_mask(mask)
    assert torch.equal(mask.dense.squeeze(1), dense)
    blocks = mask.blocks
    assert torch.equal(mask_seen_by_kernel(blocks, len(dense)), dense)
    partial = tile_mask(blocks.kv_num_blocks, blocks.kv_indices)
    full = tile_mask(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    for forward, backward in zip((partial, full), backward_tiles(blocks), strict=True):
        assert torch.equal(forward, backward)

    # Visiting an empty tile, or masking a full one, costs time but is correct. Nothing else is.
    exact = create_block_mask(
        lambda b, h, q, k: dense[b, q, k], len(dense), None, *dense.shape[1:], device="cpu"
    )
    exact_full = tile_mask(exact.full_kv_num_blocks, exact.full_kv_indices)
    exact_touched = tile_mask(exact.kv_num_blocks, exact.kv_indices) | exact_full
    assert (partial | full)[exact_touched].all()
    # The library never counts a short last tile of rows as full; ours may.
    whole_rows = dense.shape[1] // FLEX_BLOCK
    assert exact_full[:, :whole_rows][full[:, :whole_rows]].all()


@settings(max_examples=40, deadline=None)
@given(
    rows=SIZES,
    keys=SIZES,
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
    has_extra_key=st.booleans(),
)
def test_any_intervals(rows, keys, batch, seed, has_extra_key):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, keys + 1, size=(2, batch, rows)), axis=0)
    if rng.random() < 0.5:  # as in practice: both ends grow with the row
        ends = np.sort(ends, axis=2)
    start, stop = torch.from_numpy(ends.astype(np.int32))
    extra_key = torch.from_numpy(rng.integers(0, keys, size=rows)) if has_extra_key else None
    assert_correct(IntervalMask(start, stop, num_keys=keys, extra_key=extra_key))


@pytest.mark.parametrize("sees_block", [True, False])
@pytest.mark.parametrize("lengths", [(385,), (130, 1, 200, 62), (257,), (100, 29)])
@pytest.mark.parametrize("order", ["random", "strided:2", "groups:150", "given"])
def test_masks_of_real_batches(order, lengths, sees_block):
    masks = build_masks(draw_windows(order, lengths).batch(), None, upper_sees_block=sees_block)
    for mask in (masks.two_stream, masks.query_only, masks.upper):
        assert mask is not None
        assert_correct(mask)
        assert mask.dense.any(dim=-1).all(), "the softmax of an empty row is nan"


def test_tiles_of_a_causal_mask():
    """Full tiles below the diagonal, partial ones on it, none above."""
    rows = 3 * FLEX_BLOCK
    start = torch.zeros(1, rows, dtype=torch.int32)
    mask = IntervalMask(start, torch.arange(1, rows + 1, dtype=torch.int32)[None], num_keys=rows)
    full = tile_mask(mask.blocks.full_kv_num_blocks, mask.blocks.full_kv_indices)[0]
    partial = tile_mask(mask.blocks.kv_num_blocks, mask.blocks.kv_indices)[0]
    assert torch.equal(full, torch.ones(3, 3, dtype=torch.bool).tril(-1))
    assert torch.equal(partial, torch.eye(3, dtype=torch.bool))
