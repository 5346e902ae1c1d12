"""ArmdBatch: every row carries the token, position, label and anchor of its slot."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import OrderPolicy
from armd_scale.order.spans import KeySpans
from armd_scale.order.spec import parse_spec
from tests.support.strategies import orders


def draw_batch(order: OrderPolicy, lengths: list[tuple[int, ...]], *, sample: int) -> ArmdBatch:
    total = sum(lengths[0])
    rng = np.random.default_rng(sample)
    block = np.stack(
        [
            sample_blocks(order, seed=0, sample_index=sample + row, lengths=pieces)
            for row, pieces in enumerate(lengths)
        ]
    )
    return make_batch(
        rng.integers(0, 1000, (len(lengths), total)),
        block,
        lengths=lengths,
        sample_index=np.arange(sample, sample + len(lengths)),
    )


@given(
    order=orders,
    lengths=st.permutations([1, 1, 2, 9, 20]).map(tuple),
    sample=st.integers(0, 1000),
)
def test_rows_carry_what_belongs_to_their_slot(
    order: OrderPolicy, lengths: tuple[int, ...], sample: int
) -> None:
    batch = draw_batch(order, [lengths, (33,)], sample=sample)
    tokens = np.random.default_rng(sample).integers(0, 1000, (2, 33))
    starts = np.repeat(np.cumsum((0, *lengths[:-1])), lengths)
    for row, first in enumerate((starts, np.zeros(33, dtype=int))):
        slots = batch.order[row].numpy()
        content, labels = slots[:-1], slots[1:]
        block = batch.block[row].numpy()
        assert batch.tokens[row].tolist() == tokens[row][content].tolist()
        assert batch.positions[row].tolist() == (content - first[content]).tolist()
        assert batch.labels[row].tolist() == tokens[row][labels].tolist()
        assert batch.is_target[row].tolist() == (block[labels] > 0).tolist()
        for slot, p in enumerate(labels):
            if block[p] == 0:
                continue
            anchor = max(j for j in range(first[p], p) if block[j] < block[p])
            assert batch.label_positions[row, slot] == p - first[p]
            assert batch.anchor_tokens[row, slot] == tokens[row][anchor]
            assert batch.anchor_gaps[row, slot] == p - 1 - anchor
    assert batch.sample_index.tolist() == [sample, sample + 1]


@given(order=orders, sample=st.integers(0, 1000))
def test_no_index_is_out_of_range(order: OrderPolicy, sample: int) -> None:
    batch = draw_batch(order, [(1, 4, 1, 11), (17,)], sample=sample)
    num_rows = batch.tokens.shape[1]
    assert batch.label_positions.min() >= 1
    assert batch.anchor_gaps.min() >= 0
    for visible in (batch.content, batch.query, batch.upper):
        assert visible.start.min() >= 0
        assert visible.stop.max() <= num_rows
        assert (visible.start < visible.stop).all()


def test_dtypes_are_the_promised_ones() -> None:
    batch = draw_batch(parse_spec("strided:2"), [(9,), (5, 4)], sample=0)
    assert batch.block.dtype == batch.content.start.dtype == batch.upper.stop.dtype == torch.int32
    assert batch.is_target.dtype == torch.bool
    others = ("tokens", "positions", "labels", "label_positions", "anchor_tokens", "anchor_gaps")
    for name in (*others, "order", "sample_index"):
        assert getattr(batch, name).dtype == torch.int64, name
        assert getattr(batch, name).is_contiguous(), name


@pytest.mark.parametrize(
    ("spec", "lengths", "flags"),
    [
        ("l2r", (17,), (True, ((16,), (16,)), True)),
        ("random", (17,), (True, ((16,), (16,)), False)),
        ("random", (9, 8), (False, ((9, 7), (9, 7)), False)),
        ("groups:4", (17,), (False, None, False)),
    ],
)
def test_flags_come_along(spec: str, lengths: tuple[int, ...], flags: tuple) -> None:
    batch = draw_batch(parse_spec(spec), [lengths, lengths], sample=0)
    assert (batch.is_plain_causal, batch.document_rows, batch.is_left_to_right) == flags


def test_left_to_right_is_the_shift_by_one() -> None:
    batch = draw_batch(parse_spec("l2r"), [(17,)], sample=0)
    assert torch.equal(batch.anchor_tokens, batch.tokens)
    assert torch.equal(batch.label_positions - 1, batch.positions)
    assert not batch.anchor_gaps.any()
    assert batch.is_target.all()


def test_a_batch_owns_its_memory() -> None:
    tokens, block = np.arange(5)[None], np.arange(5, dtype=np.int32)[None]
    batch = make_batch(tokens, block, lengths=[(5,)], sample_index=np.zeros(1, dtype=int))
    tokens[:], block[:] = -1, -1
    assert batch.tokens.tolist() == [[0, 1, 2, 3]]
    assert batch.block.tolist() == [[0, 1, 2, 3, 4]]


def test_moving_takes_every_tensor_along() -> None:
    batch = draw_batch(parse_spec("random"), [(9,)], sample=0).to("meta")
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        tensors = [value.start, value.stop] if isinstance(value, KeySpans) else [value]
        assert all(t.is_meta for t in tensors if isinstance(t, torch.Tensor)), field.name
    assert batch.is_plain_causal


@pytest.mark.parametrize("total", [8, 9, 17])  # widths that are and are not multiples of 8 bytes
def test_a_pickled_batch_is_the_same_batch(total: int) -> None:
    batch = draw_batch(parse_spec("permuted_groups:2"), [(total,), (2, total - 2)], sample=3)
    copy = pickle.loads(pickle.dumps(batch))
    for name in ("is_plain_causal", "document_rows", "is_left_to_right"):
        assert getattr(copy, name) == getattr(batch, name)
    for field in dataclasses.fields(batch):
        one, other = getattr(batch, field.name), getattr(copy, field.name)
        if isinstance(one, KeySpans):
            assert torch.equal(one.start, other.start)
            assert torch.equal(one.stop, other.stop)
        elif isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other), field.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_reaches_the_gpu_from_pinned_memory() -> None:
    batch = draw_batch(parse_spec("random"), [(9,)], sample=0)
    moved = batch.pin_memory().to("cuda")
    assert moved.upper.stop.is_cuda
    assert torch.equal(moved.tokens.cpu(), batch.tokens)
