"""Linear layers for decoding, without autograd and the communication of training.

megatron-core wraps every linear layer in an autograd function. A decoding round feeds a handful of
rows and needs no gradient, so the wrapping would take longer than the matrix product itself.
"""

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def column_parallel_linear(
    layer: Any, rows: Float[Tensor, "*rows hidden"]
) -> Float[Tensor, "*rows columns"]:
    """Apply a ColumnParallelLinear: this rank's columns, bias included."""
    return F.linear(rows, layer.weight, layer.bias)


def row_parallel_linear(
    layer: Any, rows: Float[Tensor, "*rows columns"], group: dist.ProcessGroup
) -> Float[Tensor, "*rows hidden"]:
    """Apply a RowParallelLinear: the sum over tensor parallel ranks, bias included."""
    if group.size() == 1:
        return F.linear(rows, layer.weight, layer.bias)
    output = F.linear(rows, layer.weight)
    dist.all_reduce(output, group=group)
    # The bias is whole on every rank, so it is added once, after the sum.
    return output if layer.bias is None else output + layer.bias


def mlp_forward(
    mlp: Any, rows: Float[Tensor, "*rows hidden"], group: dist.ProcessGroup
) -> Float[Tensor, "*rows hidden"]:
    """Apply megatron-core's MLP, biases included."""
    inner = mlp.activation_func(column_parallel_linear(mlp.linear_fc1, rows))
    return row_parallel_linear(mlp.linear_fc2, inner, group)
