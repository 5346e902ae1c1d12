"""Attention kernels against softmax written out, and the folded path against the masked one."""

import dataclasses
import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from armd_scale.bench.suites.step import mean_of_targets
from armd_scale.model.armd_model import build_masks
from armd_scale.model.attention import causal_attention, masked_attention, sdpa_backend_name
from armd_scale.model.attention_mask import IntervalMask
from tests.support.networks import LLAMA, SHAPES, batch_of, build
from tests.support.windows import draw_windows

HEADS = [(4, 4), (4, 2), (6, 1)]
ROWS, BATCH, DIM = 11, 2, 8


def written_out(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v; visible [batch, rows, keys], head h reads key head h // group."""
    group = q.shape[2] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("nbhd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible.unsqueeze(1), -math.inf).softmax(dim=-1)
    return torch.einsum("bhnm,bhmd->nbhd", weights, v)


def drawn(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(*shape, generator=generator, dtype=dtype)
    return values.to(device).requires_grad_()


def assert_same(inputs: list[Tensor], mine: Tensor, theirs: Tensor, *, atol: float = 1e-12) -> None:
    """Outputs, and gradients of a random projection of them."""
    torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)
    weight = torch.randn_like(mine)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (mine, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=10 * atol, rtol=0)


def interval_mask(order: str, lengths: tuple[int, ...], *, upper: str = "block") -> IntervalMask:
    batch = draw_windows(order, lengths).batch()
    masks = build_masks(batch, None, upper_sees_block=upper == "block")
    return masks.upper if upper == "self" else masks.two_stream


def untyped_blocks(mask: IntervalMask) -> BlockMask:
    """The mask's blocks without the tests' shape checker, which torch.compile cannot trace."""
    mask.blocks.mask_mod = partial(inspect.unwrap(IntervalMask._mask_mod), mask)
    return mask.blocks


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("streams", [1, 2])
def test_causal_attention_of_streams_over_shared_keys(streams, heads, kv_heads):
    q = drawn(streams, ROWS, BATCH, heads, DIM)
    k, v = drawn(BATCH, kv_heads, ROWS, DIM), drawn(BATCH, kv_heads, ROWS, DIM)
    visible = torch.ones(BATCH, ROWS, ROWS, dtype=torch.bool).tril()
    theirs = torch.stack([written_out(stream, k, v, visible) for stream in q])
    assert_same([q, k, v], causal_attention(q, k, v), theirs)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("order", ["diffusion:4", "given"])
def test_masked_attention(order, upper, heads, kv_heads):
    mask = interval_mask(order, (4, 8), upper=upper)
    rows = mask.start.shape[1]
    q = drawn(rows, BATCH, heads, DIM)
    k = drawn(BATCH, kv_heads, mask.num_keys, DIM)
    v = drawn(BATCH, kv_heads, mask.num_keys, DIM)
    theirs = written_out(q, k, v, mask.dense.squeeze(1))
    assert_same([q, k, v], masked_attention(q, k, v, mask), theirs)


@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize(("order", "lengths"), [("given", (40, 1, 120)), ("groups:50", (300,))])
def test_flex_attention_reads_the_same_mask(order, lengths, upper):
    """Uncompiled and forward only, which is what a CPU has of it."""
    mask = interval_mask(order, lengths, upper=upper)
    q = drawn(mask.start.shape[1], BATCH, 4, DIM).detach()
    k, v = (drawn(BATCH, 2, mask.num_keys, DIM).detach() for _ in range(2))
    blocks = untyped_blocks(mask)
    flexed = flex_attention(q.permute(1, 2, 0, 3), k, v, block_mask=blocks, enable_gqa=True)
    torch.testing.assert_close(
        flexed.permute(2, 0, 1, 3), masked_attention(q, k, v, mask), atol=1e-12, rtol=0
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize(("order", "lengths"), [("given", (40, 1, 120)), ("groups:50", (300,))])
def test_masked_attention_on_cuda(order, lengths, upper):
    """The compiled kernel, forward and backward, and the dense call of a decoding round."""
    on_cpu = interval_mask(order, lengths, upper=upper)
    mask = IntervalMask(
        on_cpu.start.cuda(),
        on_cpu.stop.cuda(),
        num_keys=on_cpu.num_keys,
        extra_key=None if on_cpu.extra_key is None else on_cpu.extra_key.cuda(),
    )
    untyped_blocks(mask)
    options = {"device": "cuda", "dtype": torch.float32}
    q = drawn(mask.start.shape[1], BATCH, 4, 64, **options)
    k, v = (drawn(BATCH, 2, mask.num_keys, 64, **options) for _ in range(2))
    theirs = written_out(q, k, v, mask.dense.squeeze(1))
    assert_same([q, k, v], masked_attention(q, k, v, mask), theirs, atol=2e-2)
    with torch.no_grad():
        torch.testing.assert_close(masked_attention(q, k, v, mask), theirs, atol=2e-2, rtol=0)


@pytest.mark.parametrize("two_stream_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("order", ["random", "progressive:6", "strided-ar:3", "l2r"])
def test_the_folded_path_equals_the_masked_path(groups, order, model, two_stream_layers):
    model = dataclasses.replace(model, two_stream_layers=two_stream_layers)
    network = build(model, groups, dtype=torch.float64)
    folded = dataclasses.replace(draw_windows(order, (15,)).batch(), left_to_right=False)
    assert folded.is_plain_causal
    masked = dataclasses.replace(folded, is_plain_causal=False, document_rows=None)
    parameters = [p for p in network.parameters() if p.requires_grad]
    results = []
    for batch in (folded, masked):
        nll = network(batch)
        gradients = torch.autograd.grad(nll.sum(), parameters, allow_unused=True)
        results.append([nll, *(g for g in gradients if g is not None)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("order", ["random", "strided-ar:2", "l2r"])
@pytest.mark.parametrize("model", [*SHAPES.values(), dataclasses.replace(LLAMA, query="prefix")])
def test_documents_one_by_one_equal_the_masked_path(groups, order, model):
    """In what targets cost and in all gradients; rows without a target differ and count nowhere."""
    network = build(model, groups, dtype=torch.float64)
    drawn = [draw_windows(order, lengths, count=1) for lengths in ((5, 1, 9), (2, 12, 1))]
    tokens, block = (
        np.concatenate([getattr(d, name) for d in drawn]) for name in ("tokens", "block")
    )
    batch = batch_of(tokens, block, [(5, 1, 9), (2, 12, 1)])
    packed = dataclasses.replace(batch, is_left_to_right=False)
    assert packed.document_rows == ((5, 1, 8), (2, 12))
    results = []
    for one in (packed, dataclasses.replace(packed, document_rows=None)):
        network.zero_grad()
        loss, nats = network(one, mean_of_targets(one))
        loss.backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        results.append([nats[0][one.is_target], *gradients])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


def test_the_kernel_is_the_one_that_runs():
    """By the names of the operators that a profile shows."""
    q, k = drawn(2, ROWS, BATCH, 4, DIM), drawn(BATCH, 2, ROWS, DIM)
    sizes = {"heads": 8, "kv_heads": 2, "rows": ROWS, "head_dim": DIM}
    name = sdpa_backend_name(**sizes, device=torch.device("cpu"), dtype=torch.float64)
    with torch.profiler.profile() as profile:
        causal_attention(q, k, k)
    operators = " ".join(event.key for event in profile.key_averages())
    assert name == "FLASH_ATTENTION"
    assert "_scaled_dot_product_flash_attention" in operators
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert sdpa_backend_name(**sizes, device=torch.device("cpu"), dtype=torch.float64) == "MATH"
