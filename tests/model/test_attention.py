"""Attention functions against an explicit softmax; the folded path against the masked path."""

import dataclasses
import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from armd_scale.bench.suites.step import mean_loss_spec
from armd_scale.model.attention import causal_attention, masked_attention, sdpa_backend_name
from armd_scale.model.attention_mask import IntervalMask, build_masks
from tests.support.networks import LLAMA, SHAPES, batch_of, build
from tests.support.windows import draw_windows

HEADS = [(4, 4), (4, 2), (6, 1)]
ROWS, BATCH, DIM = 11, 2, 8


def reference_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Return softmax(q k / sqrt(d)) v, with `visible` [batch, rows, keys]."""
    group = q.shape[2] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("nbhd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible.unsqueeze(1), -math.inf).softmax(dim=-1)
    return torch.einsum("bhnm,bhmd->nbhd", weights, v)


def random_tensor(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(*shape, generator=generator, dtype=dtype)
    return values.to(device).requires_grad_()


def assert_same(
    inputs: list[Tensor], actual: Tensor, expected: Tensor, *, atol: float = 1e-12
) -> None:
    """Compare outputs, and the gradients of a random projection of them."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
    weight = torch.randn_like(actual)
    grads = [torch.autograd.grad((out * weight).sum(), inputs) for out in (actual, expected)]
    for grad, expected_grad in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=10 * atol, rtol=0)


def interval_mask(order: str, lengths: tuple[int, ...], *, upper: str = "block") -> IntervalMask:
    batch = draw_windows(order, lengths).batch()
    masks = build_masks(batch, None, upper_sees_block=upper == "block")
    mask = masks.upper if upper == "self" else masks.two_stream
    assert mask is not None
    return mask


def untyped_blocks(mask: IntervalMask) -> BlockMask:
    """Return the mask's blocks without the shape checker, which torch.compile cannot trace."""
    mask.blocks.mask_mod = partial(inspect.unwrap(IntervalMask._mask_mod), mask)
    return mask.blocks


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("streams", [1, 2])
def test_causal_attention_of_one_and_two_streams(streams, heads, kv_heads):
    q = random_tensor(streams, ROWS, BATCH, heads, DIM)
    k, v = random_tensor(BATCH, kv_heads, ROWS, DIM), random_tensor(BATCH, kv_heads, ROWS, DIM)
    visible = torch.ones(BATCH, ROWS, ROWS, dtype=torch.bool).tril()
    expected = torch.stack([reference_attention(stream, k, v, visible) for stream in q])
    assert_same([q, k, v], causal_attention(q, k, v), expected)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("order", ["diffusion:4", "given"])
def test_masked_attention(order, upper, heads, kv_heads):
    mask = interval_mask(order, (4, 8), upper=upper)
    rows = mask.start.shape[1]
    q = random_tensor(rows, BATCH, heads, DIM)
    k = random_tensor(BATCH, kv_heads, mask.num_keys, DIM)
    v = random_tensor(BATCH, kv_heads, mask.num_keys, DIM)
    expected = reference_attention(q, k, v, mask.dense.squeeze(1))
    assert_same([q, k, v], masked_attention(q, k, v, mask), expected)


@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize(("order", "lengths"), [("given", (40, 1, 120)), ("groups:50", (300,))])
def test_flex_attention_reads_the_same_mask(order, lengths, upper):
    """Uncompiled and forward only, which is what FlexAttention supports on CPU."""
    mask = interval_mask(order, lengths, upper=upper)
    q = random_tensor(mask.start.shape[1], BATCH, 4, DIM).detach()
    k, v = (random_tensor(BATCH, 2, mask.num_keys, DIM).detach() for _ in range(2))
    blocks = untyped_blocks(mask)
    out = flex_attention(q.permute(1, 2, 0, 3), k, v, block_mask=blocks, enable_gqa=True)
    torch.testing.assert_close(
        out.permute(2, 0, 1, 3), masked_attention(q, k, v, mask), atol=1e-12, rtol=0
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize(("order", "lengths"), [("given", (40, 1, 120)), ("groups:50", (300,))])
def test_masked_attention_on_cuda(order, lengths, upper):
    """The compiled kernel, forward and backward, and the dense call that decoding uses."""
    on_cpu = interval_mask(order, lengths, upper=upper)
    mask = IntervalMask(
        on_cpu.start.cuda(),
        on_cpu.stop.cuda(),
        num_keys=on_cpu.num_keys,
        extra_key=None if on_cpu.extra_key is None else on_cpu.extra_key.cuda(),
    )
    untyped_blocks(mask)
    options = {"device": "cuda", "dtype": torch.float32}
    q = random_tensor(mask.start.shape[1], BATCH, 4, 64, **options)
    k, v = (random_tensor(BATCH, 2, mask.num_keys, 64, **options) for _ in range(2))
    expected = reference_attention(q, k, v, mask.dense.squeeze(1))
    assert_same([q, k, v], masked_attention(q, k, v, mask), expected, atol=2e-2)
    with torch.no_grad():
        torch.testing.assert_close(masked_attention(q, k, v, mask), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("two_stream_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("order", ["random", "progressive:6", "strided-ar:3", "l2r"])
def test_the_folded_path_equals_the_masked_path(groups, order, model, two_stream_layers):
    model = dataclasses.replace(model, two_stream_layers=two_stream_layers)
    network = build(model, groups, dtype=torch.float64)
    folded = dataclasses.replace(draw_windows(order, (15,)).batch(), is_left_to_right=False)
    assert folded.is_plain_causal
    masked = dataclasses.replace(folded, is_plain_causal=False, document_rows=None)
    parameters = [p for p in network.parameters() if p.requires_grad]
    results = []
    for batch in (folded, masked):
        nll = network(batch)
        grads = torch.autograd.grad(nll.sum(), parameters, allow_unused=True)
        results.append([nll, *(g for g in grads if g is not None)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("order", ["random", "strided-ar:2", "l2r"])
@pytest.mark.parametrize("model", [*SHAPES.values(), dataclasses.replace(LLAMA, query="prefix")])
def test_document_attention_equals_the_masked_path(groups, order, model):
    """Nats of targets and all gradients are equal; rows without a target may differ."""
    network = build(model, groups, dtype=torch.float64)
    windows = [draw_windows(order, lengths, count=1) for lengths in ((5, 1, 9), (2, 12, 1))]
    tokens, block = (
        np.concatenate([getattr(w, name) for w in windows]) for name in ("tokens", "block")
    )
    batch = batch_of(tokens, block, [(5, 1, 9), (2, 12, 1)])
    packed = dataclasses.replace(batch, is_left_to_right=False)
    assert packed.document_rows == ((5, 1, 8), (2, 12))
    results = []
    for variant in (packed, dataclasses.replace(packed, document_rows=None)):
        network.zero_grad()
        loss, nats = network(variant, mean_loss_spec(variant))
        loss.backward()
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        results.append([nats[0][variant.is_target], *grads])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-11, rtol=0)


def test_the_named_kernel_is_the_one_that_runs():
    """Compare with the operator names that a profile shows."""
    q, k = random_tensor(2, ROWS, BATCH, 4, DIM), random_tensor(BATCH, 2, ROWS, DIM)
    sizes = {"heads": 8, "kv_heads": 2, "rows": ROWS, "head_dim": DIM}
    name = sdpa_backend_name(**sizes, device=torch.device("cpu"), dtype=torch.float64)
    with torch.profiler.profile() as profile:
        causal_attention(q, k, k)
    operators = " ".join(event.key for event in profile.key_averages())
    assert name == "FLASH_ATTENTION"
    assert "_scaled_dot_product_flash_attention" in operators
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert sdpa_backend_name(**sizes, device=torch.device("cpu"), dtype=torch.float64) == "MATH"
