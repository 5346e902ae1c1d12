"""The products of a layer in a round of decoding, without what training needs around them.

megatron-core wraps each in an autograd function. A round feeds a handful of rows, and no gradient
runs through it: there the wrapping takes longer than the product.
"""

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def column_parallel_linear(
    layer: Any, rows: Float[Tensor, "*rows hidden"]
) -> Float[Tensor, "*rows columns"]:
    """A ColumnParallelLinear's columns of this rank, bias included."""
    return F.linear(rows, layer.weight, layer.bias)


def row_parallel_linear(
    layer: Any, rows: Float[Tensor, "*rows columns"], group: dist.ProcessGroup
) -> Float[Tensor, "*rows hidden"]:
    """A RowParallelLinear's rows, summed over the tensor-parallel ranks, bias included."""
    if group.size() == 1:
        return F.linear(rows, layer.weight, layer.bias)
    product = F.linear(rows, layer.weight)
    dist.all_reduce(product, group=group)
    return product if layer.bias is None else product + layer.bias


def mlp_forward(
    mlp: Any, rows: Float[Tensor, "*rows hidden"], group: dist.ProcessGroup
) -> Float[Tensor, "*rows hidden"]:
    """An MLP's rows, biases included."""
    inner = mlp.activation_func(column_parallel_linear(mlp.linear_fc1, rows))
    return row_parallel_linear(mlp.linear_fc2, inner, group)
