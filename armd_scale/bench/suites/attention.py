"""Attention of both streams: folded into one causal call, compared with masked variants."""

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
    repeats: int = 7,
) -> list[Row]:
    """Time forward and backward of one layer's attention for both streams, batch 1.

    Args:
        seq_lengths: numbers of targets N.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: width of a head.
        repeats: timed repeats of each case.

    Returns:
        For each sequence length a row for each case, with its time ratio to `folded`: `ar` is the
        one stream of an AR model; `folded` one causal call with twice the heads; `two_masks` a call
        with a dense mask for each stream; `doubled` one call over 2N queries and 2N keys with a
        dense mask.
    """
    device = read_environment().device
    dtype = compute_dtype(device)
    rows: list[Row] = []
    for length in seq_lengths:
        generator = torch.Generator().manual_seed(0)
        shapes = [(2, length, 1, heads, head_dim), *2 * [(1, kv_heads, length, head_dim)]]
        q, k, v = (
            torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()
            for shape in shapes
        )
        cases = {
            name: _with_backward(forward, (q, k, v))
            for name, forward in attention_functions(q, k, v).items()
        }
        timings = time_interleaved(cases, repeats=repeats)
        rows += [
            {"N": length, **timing.row(name), "ratio": ratio(timings, name, "folded")}
            for name, timing in timings.items()
        ]
    return rows


def attention_functions(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the cases of `compare_attention`; their outputs differ in the order of dimensions.

    Args:
        q: queries of both streams, [2, rows, batch, heads, head_dim].
        k: keys of the content rows, [batch, kv_heads, rows, head_dim].
        v: values, like the keys.
    """
    length = k.shape[2]
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    nothing = torch.zeros_like(causal)
    # Both streams see the keys of the content rows, and none sees those of the query rows.
    both = torch.cat((torch.cat((causal, nothing), 1), torch.cat((causal, nothing), 1)))

    def masked(rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            rows.permute(1, 2, 0, 3), keys, values, attn_mask=mask, enable_gqa=True
        )

    def two_masks() -> Tensor:
        return torch.cat([masked(stream, k, v, causal) for stream in q], dim=2)

    def doubled() -> Tensor:
        # The keys of the query rows are computed and masked out, as without any knowledge of the
        # structure: 4 N^2 scores, of which a causal kernel for both streams needs N^2.
        return masked(q.flatten(0, 1), torch.cat((k, k), 2), torch.cat((v, v), 2), both)

    return {
        "ar": lambda: causal_attention(q[:1], k, v),
        "folded": lambda: causal_attention(q, k, v),
        "two_masks": two_masks,
        "doubled": doubled,
    }


def _with_backward(forward: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], None]:
    def run() -> None:
        # Not backward(), which would add to the gradients of the repeat before: extra time.
        torch.autograd.grad(forward().sum(), inputs)

    return run
