"""Attention kernels against a float32 reference, and the speed of attention and LM head."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armd_scale.bench.gpu_check.results import Recorder
from armd_scale.bench.suites.lm_head import HeadShape, compare_heads
from armd_scale.bench.suites.step import compute_dtype
from armd_scale.bench.timing import synchronize
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.model.attention import causal_attention, masked_attention
from armd_scale.model.attention_mask import IntervalMask, LayerMasks, build_masks
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from armd_scale.parallel.environment import read_environment

ORDERS = ("progressive:64", "strided:4")
"""Singleton blocks in packed documents, and blocks of several tokens."""
MASK_NAMES = ("two_stream", "query_only", "upper")
NUM_DOCUMENTS = 4
MAX_GRAPHS = 4
"""torch.compile may make this many graphs of FlexAttention: a new mask must not recompile it."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one layer's attention."""

    targets: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int


FULL = Sizes(targets=2048, batch=8, heads=16, kv_heads=8, head_dim=128)
HEADS = (
    HeadShape(8192, 768, 50304),
    HeadShape(8192, 2048, 50304),
    HeadShape(4096, 4096, 151936),
)
"""Micro-batches of the 125M, 1B and 8B models."""
TINY = Sizes(targets=48, batch=2, heads=4, kv_heads=2, head_dim=16)


def run(recorder: Recorder, *, dry: bool, folder: Path) -> None:
    """Run the section."""
    sizes = TINY if dry else FULL
    device = read_environment().device
    _check_masked_attention(recorder, sizes, device)
    _time_attention(recorder, sizes, device)
    if device.type == "cuda":
        _time_varlen(recorder, sizes, device)
        _time_growing_keys(recorder, sizes, device)
    else:
        recorder.skip("variable-length flash attention, same documents")
        recorder.skip("masked attention with a new number of keys in each call")
    _measure_heads(recorder, dry=dry)


def _packed_batch(order: str, sizes: Sizes, *, seed: int) -> ArmdBatch:
    """Return windows of NUM_DOCUMENTS documents under an order."""
    rng = np.random.default_rng(seed)
    length = sizes.targets + 1
    cuts = np.sort(rng.choice(np.arange(1, sizes.targets), NUM_DOCUMENTS - 1, replace=False))
    lengths = tuple(int(size) for size in np.diff([0, *cuts, length]))
    spec, samples = parse_spec(order), range(sizes.batch)
    blocks = [sample_blocks(spec, seed=seed, sample_index=i, lengths=lengths) for i in samples]
    tokens = rng.integers(0, 100, (sizes.batch, length))
    return make_batch(
        tokens, np.stack(blocks), lengths=[lengths] * sizes.batch, sample_index=np.array(samples)
    )


def _masks(order: str, sizes: Sizes, device: torch.device, *, seed: int) -> LayerMasks:
    batch = _packed_batch(order, sizes, seed=seed).to(device)
    return build_masks(batch, None, upper_sees_block=True)


def _random_inputs(sizes: Sizes, rows: int, device: torch.device) -> list[Tensor]:
    """Return queries [rows, batch, heads, dim], keys and values [batch, kv_heads, keys, dim]."""
    generator, dtype = torch.Generator(device).manual_seed(0), compute_dtype(device)
    keys = (sizes.batch, sizes.kv_heads, sizes.targets, sizes.head_dim)
    shapes = [(rows, sizes.batch, sizes.heads, sizes.head_dim), keys, keys]
    return [
        torch.randn(*shape, generator=generator, device=device, dtype=dtype).requires_grad_()
        for shape in shapes
    ]


def _reference(inputs: list[Tensor], mask: IntervalMask) -> Tensor:
    """Attention written out as a softmax over all keys, in the type of the inputs."""
    q, k, v = inputs
    group = q.shape[2] // k.shape[1]
    # Grouped-query attention: `group` neighboring query heads share a key/value head.
    k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (k, v))
    scores = torch.einsum("rbhd,bhkd->bhrk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask.dense, -torch.inf).softmax(-1)
    return torch.einsum("bhrk,bhkd->rbhd", weights, v)


def _check_masked_attention(recorder: Recorder, sizes: Sizes, device: torch.device) -> None:
    """Compare FlexAttention (a dense mask on CPU) with the reference, forward and backward."""
    on_cuda = device.type == "cuda"
    start = time.perf_counter()
    for order in ORDERS:
        masks = _masks(order, sizes, device, seed=0)
        for name in MASK_NAMES:
            mask = getattr(masks, name)
            inputs = _random_inputs(sizes, mask.start.shape[1], device)
            masked_attention(inputs[0], inputs[1], inputs[2], mask).sum().backward()
            if on_cuda and (order, name) == (ORDERS[0], MASK_NAMES[0]):
                synchronize()
                elapsed = time.perf_counter() - start
                value = f"{elapsed:.0f} s"
                recorder.check(elapsed < 90, "FlexAttention: first compile", value, "< 90 s")
            _compare(recorder, f"masked attention, {order}, {name}", inputs, mask)
    if not on_cuda:
        recorder.skip("FlexAttention: first compile")
        recorder.skip("FlexAttention: graphs over new masks")
        return
    _count_graphs(recorder, sizes, device)


def _compare(recorder: Recorder, name: str, inputs: list[Tensor], mask: IntervalMask) -> None:
    # bfloat16 has 8 bits of mantissa: outputs around 1 differ by a few 2^-8.
    max_error, max_gradient_error = (3e-2, 2e-2) if inputs[0].is_cuda else (1e-5, 1e-5)
    # The same numbers in float32: rounding of the inputs is not an error of the kernel. Gradients
    # of `inputs` are those that the caller's backward pass has left.
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = _reference(exact, mask)
    expected.sum().backward()
    with torch.no_grad():
        error = (
            (masked_attention(inputs[0], inputs[1], inputs[2], mask) - expected).abs().max().item()
        )
    # Relative to the whole gradient, because single entries near 0 have large relative errors.
    gradient_error = max(
        ((_gradient(tensor) - _gradient(other)).norm() / _gradient(other).norm()).item()
        for tensor, other in zip(inputs, exact, strict=True)
    )
    recorder.check(
        error < max_error and gradient_error < max_gradient_error,
        name,
        f"outputs {error:.1e}, gradients {gradient_error:.1e}",
        f"< {max_error:g}, < {max_gradient_error:g}",
    )


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _count_graphs(recorder: Recorder, sizes: Sizes, device: torch.device) -> None:
    """Count what torch.compile has compiled after many different masks."""
    from torch._dynamo.utils import counters

    for seed in range(1, 4):
        for order in ORDERS:
            masks = _masks(order, sizes, device, seed=seed)
            for mask in (getattr(masks, name) for name in MASK_NAMES):
                inputs = _random_inputs(sizes, mask.start.shape[1], device)
                masked_attention(inputs[0], inputs[1], inputs[2], mask).sum().backward()
    # Counts all graphs of this process, those of _check_masked_attention included.
    graphs = counters["stats"]["unique_graphs"]
    name = "FlexAttention: graphs over new masks"
    recorder.check(graphs <= MAX_GRAPHS, name, graphs, f"<= {MAX_GRAPHS}")


def _with_backward(inputs: list[Tensor], forward: Callable[[], Tensor]) -> Callable[[], None]:
    def call() -> None:
        for tensor in inputs:
            tensor.grad = None
        outputs = forward()
        outputs.backward(torch.ones_like(outputs))

    return call


def _milliseconds(call: Callable[[], object], *, repeats: int = 10, warm_up: int = 3) -> float:
    """Return the mean time of a call in a row of calls, as training launches kernels."""
    # Warm-up compiles kernels. No synchronize inside the timed loop: the host may queue kernels
    # ahead of the device, so the launch of one call overlaps the kernels of the one before.
    for _ in range(warm_up):
        call()
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return 1e3 * (time.perf_counter() - start) / repeats


def _time_attention(recorder: Recorder, sizes: Sizes, device: torch.device) -> None:
    mask = _masks(ORDERS[0], sizes, device, seed=9).two_stream
    assert mask is not None
    inputs = _random_inputs(sizes, mask.start.shape[1], device)
    q, k, v = inputs
    # A copy has not computed its block mask yet.
    blocks = _milliseconds(lambda: replace(mask).blocks)
    recorder.info("BlockMask from intervals", f"{blocks:.2f} ms")
    streams = q.unflatten(0, (2, sizes.targets))
    causal = _milliseconds(_with_backward(inputs, lambda: causal_attention(streams, k, v)))
    masked = _milliseconds(_with_backward(inputs, lambda: masked_attention(q, k, v, mask)))
    # Two products forward and five backward, each 2 FLOPs per query, key and channel, over half of
    # the keys; both streams.
    rows = 2 * sizes.heads * sizes.targets
    flops = 3.5 * 4 * 0.5 * sizes.batch * rows * sizes.targets * sizes.head_dim
    rate = flops / causal / 1e9
    value = f"{causal:.2f} ms, {rate:.0f} TFLOP/s"
    name = "folded causal attention, forward and backward"
    if device.type != "cuda":
        recorder.info(name, value)
        recorder.skip("FlexAttention over the folded causal call")
        return
    recorder.check(rate > 350, name, value, "> 350 TFLOP/s")
    # The causal call does not know the documents: it also computes the scores between them, which
    # the masked call skips tile by tile.
    ratio = masked / causal
    value = f"{masked:.2f} ms, ratio {ratio:.2f}"
    recorder.check(ratio < 1.3, "FlexAttention over the folded causal call", value, "< 1.3")


def _time_varlen(recorder: Recorder, sizes: Sizes, device: torch.device) -> None:
    """Time the kernel that could serve packed documents without compiling anything."""
    batch = _packed_batch(ORDERS[0], sizes, seed=9)
    assert batch.document_rows is not None
    lengths = [length for sample in batch.document_rows for length in sample]
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    num_rows, longest = int(offsets[-1]), max(lengths)

    def tensor(heads: int) -> Tensor:
        values = torch.randn(num_rows, heads, sizes.head_dim, device=device, dtype=torch.bfloat16)
        return values.requires_grad_()

    # Both streams as query heads, as in the folded call; all samples in one dimension of rows.
    inputs = [tensor(2 * sizes.heads), tensor(sizes.kv_heads), tensor(sizes.kv_heads)]
    flash = torch.ops.aten._flash_attention_forward

    def forward() -> Tensor:
        # Offsets and longest document of queries and of keys; no dropout, causal, no debug mask.
        return flash(*inputs, offsets, offsets, longest, longest, 0.0, True, False)[0]

    milliseconds = _milliseconds(_with_backward(inputs, forward))
    recorder.info("variable-length flash attention, same documents", f"{milliseconds:.2f} ms")


def _time_growing_keys(recorder: Recorder, sizes: Sizes, device: torch.device) -> None:
    """Time masked calls with a new number of keys each, as decoding makes them.

    cuDNN plans a kernel for each exact shape, which costs about 100 milliseconds on the host.
    """
    attend = torch.nn.functional.scaled_dot_product_attention

    def call(num_keys: int) -> None:
        q = torch.randn(1, sizes.kv_heads, 8, sizes.head_dim, device=device, dtype=torch.bfloat16)
        k = torch.randn(1, sizes.kv_heads, num_keys, sizes.head_dim, device=device, dtype=q.dtype)
        mask = torch.ones(1, 1, 8, num_keys, dtype=torch.bool, device=device)
        attend(q, k, k, attn_mask=mask)

    with torch.no_grad():
        for cudnn in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            # The first call loads libraries; the sizes of the timed calls are all new to cuDNN.
            call(199)
            synchronize()
            start = time.perf_counter()
            for num_keys in range(200, 232):
                call(num_keys)
            synchronize()
            milliseconds = 1e3 * (time.perf_counter() - start) / 32
            name = f"masked attention with a new number of keys, cuDNN {'on' if cudnn else 'off'}"
            value = f"{milliseconds:.2f} ms a call"
            if cudnn:  # decoding leaves it out
                recorder.info(name, value)
            else:
                recorder.check(milliseconds < 2, name, value, "< 2 ms")
    torch.backends.cuda.enable_cudnn_sdp(True)


def _measure_heads(recorder: Recorder, *, dry: bool) -> None:
    """Check that the LM head holds little more than one chunk of logits."""
    shapes = (HeadShape(512, 32, 8192),) if dry else HEADS
    for row in compare_heads(repeats=1 if dry else 5, shapes=shapes):
        name = f"LM head {row['rows']} x {row['hidden']}, {row['vocabulary']}: {row['case']}"
        memory = f"{row['without gradients MiB']:.0f} MiB, {row['chunks of logits']:.2f} chunks"
        value = f"{row['median ms']:.1f} ms, ratio {row['time ratio']:.2f}, {memory}"
        if row["case"] == "ours":
            recorder.check(float(row["chunks of logits"]) < 2.5, name, value, "< 2.5 chunks")
        else:
            recorder.info(name, value)
