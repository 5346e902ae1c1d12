"""Attention alone: the two streams folded into one causal call, against ways that use masks."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from armd_scale.bench.suites.step import compute_dtype
from armd_scale.bench.table import Row
from armd_scale.bench.timing import ratio, time_interleaved
from armd_scale.model.attention import causal_attention
from armd_scale.parallel.environment import read_environment


def compare_attention(
    *,
    seq_lengths: Sequence[int] = (512, 1024, 2048),
    heads: int = 8,
    kv_heads: int = 8,
    head_dim: int = 64,
    runs: int = 7,
) -> list[Row]:
    """Times forward and backward pass of one layer's attention for both streams, batch 1.

    Returns:
        For each sequence length a row for each way, with its ratio to `folded`: `ar` is the one
        stream of an AR model; `folded` one causal call with twice the heads; `two_masks` a call
        with a dense mask for each stream; `doubled` one call over 2N queries and 2N keys under a
        dense mask.
    """
    device = read_environment().device
    dtype = compute_dtype(device)
    rows: list[Row] = []
    for length in seq_lengths:
        draw = torch.Generator().manual_seed(0)
        shapes = [(2, length, 1, heads, head_dim), *2 * [(1, kv_heads, length, head_dim)]]
        q, k, v = (
            torch.randn(*shape, generator=draw).to(device, dtype).requires_grad_()
            for shape in shapes
        )
        ways = {name: _with_backward(way, (q, k, v)) for name, way in ways_of(q, k, v).items()}
        times = time_interleaved(ways, runs=runs)
        rows += [
            {"N": length, **taken.row(name), "ratio": ratio(times, name, "folded")}
            for name, taken in times.items()
        ]
    return rows


def ways_of(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Attention of both streams, but for `ar`, each way with its own order of dimensions."""
    length = k.shape[2]
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    nothing = torch.zeros_like(seen)
    # Keys of the content rows are seen by both streams, those of the query rows by none.
    both = torch.cat((torch.cat((seen, nothing), 1), torch.cat((seen, nothing), 1)))

    def masked(rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            rows.permute(1, 2, 0, 3), keys, values, attn_mask=mask, enable_gqa=True
        )

    def two_masks() -> Tensor:
        return torch.cat([masked(stream, k, v, seen) for stream in q], dim=2)

    def doubled() -> Tensor:
        return masked(q.flatten(0, 1), torch.cat((k, k), 2), torch.cat((v, v), 2), both)

    return {
        "ar": lambda: causal_attention(q[:1], k, v),
        "folded": lambda: causal_attention(q, k, v),
        "two_masks": two_masks,
        "doubled": doubled,
    }


def _with_backward(forward: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], None]:
    def run() -> None:
        torch.autograd.grad(forward().sum(), inputs)

    return run
