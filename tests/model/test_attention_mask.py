"""Interval masks: the dense form, and the tiles that FlexAttention is told to look at."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from armd_scale.model.armd_model import build_masks
from armd_scale.model.attention_mask import FLEX_BLOCK, IntervalMask
from tests.support.windows import draw_windows

SIZES = st.integers(1, 3 * FLEX_BLOCK + 5)


def by_definition(mask: IntervalMask) -> Tensor:
    """[batch, rows, keys], one element at a time."""
    visible = np.zeros((*mask.start.shape, mask.num_keys), dtype=bool)
    for b, row in np.ndindex(*mask.start.shape):
        visible[b, row, mask.start[b, row] : mask.stop[b, row]] = True
        if mask.extra_key is not None:
            visible[b, row, mask.extra_key[row]] = True
    return torch.from_numpy(visible)


def tiles(count: Tensor, index: Tensor) -> Tensor:
    """[batch, row_tiles, key_tiles]: the tiles that a kernel would walk over."""
    chosen = torch.arange(index.shape[-1]) < count.unsqueeze(-1)
    out = torch.zeros_like(index, dtype=torch.bool)
    return out.scatter(-1, index.long(), chosen).squeeze(1)


def per_element(tile: Tensor, rows: int, keys: int) -> Tensor:
    wide = tile.repeat_interleave(FLEX_BLOCK, dim=1).repeat_interleave(FLEX_BLOCK, dim=2)
    return wide[:, :rows, :keys]


def as_a_kernel_reads(blocks: BlockMask, batch: int) -> Tensor:
    """[batch, rows, keys]: full tiles whole, partial ones by the mask function, no others."""
    rows, keys = blocks.seq_lengths
    partial = per_element(tiles(blocks.kv_num_blocks, blocks.kv_indices), rows, keys)
    full = per_element(tiles(blocks.full_kv_num_blocks, blocks.full_kv_indices), rows, keys)
    assert not (partial & full).any()
    b, row, key = torch.meshgrid(*map(torch.arange, (batch, rows, keys)), indexing="ij")
    seen = blocks.mask_mod(b, torch.zeros_like(b), row, key)
    return full | (partial & seen)


def as_the_backward_reads(blocks: BlockMask) -> tuple[Tensor, Tensor]:
    """Partial and full tiles as the pass over keys walks them, [batch, row_tiles, key_tiles]."""
    partial = tiles(blocks.q_num_blocks, blocks.q_indices).mT
    return partial, tiles(blocks.full_q_num_blocks, blocks.full_q_indices).mT


def assert_sound(mask: IntervalMask) -> None:
    dense = by_definition(mask)
    assert torch.equal(mask.dense.squeeze(1), dense)
    blocks = mask.blocks
    assert torch.equal(as_a_kernel_reads(blocks, len(dense)), dense)
    partial = tiles(blocks.kv_num_blocks, blocks.kv_indices)
    full = tiles(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    for mine, backward in zip((partial, full), as_the_backward_reads(blocks), strict=True):
        assert torch.equal(mine, backward)

    # The tiles that are looked at in vain, or element by element in vain, are allowed, not others.
    exact = create_block_mask(
        lambda b, h, q, k: dense[b, q, k], len(dense), None, *dense.shape[1:], device="cpu"
    )
    exact_full = tiles(exact.full_kv_num_blocks, exact.full_kv_indices)
    exact_touched = tiles(exact.kv_num_blocks, exact.kv_indices) | exact_full
    assert (partial | full)[exact_touched].all()
    # A short last tile of rows is never full for the library, and may be for us.
    whole_rows = dense.shape[1] // FLEX_BLOCK
    assert exact_full[:, :whole_rows][full[:, :whole_rows]].all()


@settings(max_examples=40, deadline=None)
@given(
    rows=SIZES,
    keys=SIZES,
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
    own=st.booleans(),
)
def test_any_intervals(rows, keys, batch, seed, own):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, keys + 1, size=(2, batch, rows)), axis=0)
    if rng.random() < 0.5:  # the shape they have in practice: both ends grow with the row
        ends = np.sort(ends, axis=2)
    start, stop = torch.from_numpy(ends.astype(np.int32))
    diagonal = torch.from_numpy(rng.integers(0, keys, size=rows)) if own else None
    assert_sound(IntervalMask(start, stop, num_keys=keys, extra_key=diagonal))


@pytest.mark.parametrize("sees_block", [True, False])
@pytest.mark.parametrize("lengths", [(385,), (130, 1, 200, 62), (257,), (100, 29)])
@pytest.mark.parametrize("order", ["random", "strided:2", "groups:150", "given"])
def test_masks_of_real_batches(order, lengths, sees_block):
    masks = build_masks(draw_windows(order, lengths).batch(), None, upper_sees_block=sees_block)
    for mask in (masks.two_stream, masks.query_only, masks.upper):
        assert_sound(mask)
        assert mask.dense.any(dim=-1).all(), "a softmax over nothing is not a number"


def test_a_causal_mask_is_told_apart_tile_by_tile():
    """Prefixes as long as the row: full below the diagonal, partial on it, nothing above."""
    rows = 3 * FLEX_BLOCK
    start = torch.zeros(1, rows, dtype=torch.int32)
    mask = IntervalMask(start, torch.arange(1, rows + 1, dtype=torch.int32)[None], num_keys=rows)
    full = tiles(mask.blocks.full_kv_num_blocks, mask.blocks.full_kv_indices)[0]
    partial = tiles(mask.blocks.kv_num_blocks, mask.blocks.kv_indices)[0]
    assert torch.equal(full, torch.ones(3, 3, dtype=torch.bool).tril(-1))
    assert torch.equal(partial, torch.eye(3, dtype=torch.bool))
