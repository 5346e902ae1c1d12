"""The gated activation as one operation that keeps nothing but its input.

Differentiated operator by operator it would keep silu(gate) and the halves beside it, and put the
halves' gradients together in a copy.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


class SwiGlu(nn.Module):
    """silu(gate) * up of rows that hold gate, then up (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.activation_func is F.silu
        assert config.gated_linear_unit

    def forward(self, rows: Float[Tensor, "*rows both"]) -> Float[Tensor, "*rows half"]:
        """The product of both halves."""
        return _SwiGlu.apply(rows) if torch.is_grad_enabled() else _gated(rows)  # pyright: ignore[reportReturnType]


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _gated(rows)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (rows,), (product_gradient,) = ctx.saved_tensors, upstream
        gate, up = rows.chunk(2, dim=-1)
        gradient = torch.empty_like(rows)
        by_gate, by_up = gradient.chunk(2, dim=-1)
        torch.mul(product_gradient, F.silu(gate), out=by_up)
        torch.ops.aten.silu_backward.grad_input(product_gradient * up, gate, grad_input=by_gate)
        return gradient


def _gated(rows: Tensor) -> Tensor:
    gate, up = rows.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
