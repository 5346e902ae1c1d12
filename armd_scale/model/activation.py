"""SwiGLU as one autograd function that saves nothing but its input.

Differentiated operator by operator, autograd would also save silu(gate), half the size of the
input again, and would copy the gradients of both halves to concatenate them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


class SwiGlu(nn.Module):
    """silu(gate) * up, for rows that hold gate, then up (Shazeer, arXiv 2002.05202).

    Args:
        config: must select a SiLU-gated MLP; megatron-core passes it to activation modules.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.activation_func is F.silu
        assert config.gated_linear_unit

    def forward(self, rows: Float[Tensor, "*rows gate_up"]) -> Float[Tensor, "*rows half"]:
        """Return the product of both halves."""
        return _SwiGlu.apply(rows) if torch.is_grad_enabled() else _swiglu(rows)  # pyright: ignore[reportReturnType]


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _swiglu(rows)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (rows,), (output_grad,) = ctx.saved_tensors, upstream
        gate, up = rows.chunk(2, dim=-1)
        # Both halves are written into one tensor through views, which saves the concatenation.
        rows_grad = torch.empty_like(rows)
        gate_grad, up_grad = rows_grad.chunk(2, dim=-1)
        torch.mul(output_grad, F.silu(gate), out=up_grad)
        torch.ops.aten.silu_backward.grad_input(output_grad * up, gate, grad_input=gate_grad)
        return rows_grad


def _swiglu(rows: Tensor) -> Tensor:
    gate, up = rows.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
