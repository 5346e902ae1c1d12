"""RMSNorm and LayerNorm that support tensor and sequence parallelism."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from armd_scale.parallel.tensor.partition import mark_partial_grad


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, as `config.normalization` says.

    megatron-core's own norm refuses sequence parallelism without CUDA extensions.

    Args:
        config: kind and epsilon of the norm, and whether sequence parallelism splits the rows.
        width: size of the last dimension.
        on_heads: rows are attention heads, which tensor parallelism distributes over ranks.
    """

    def __init__(self, config: TransformerConfig, width: int, *, on_heads: bool = False) -> None:
        super().__init__()
        self.eps = config.layernorm_epsilon
        self.weight = nn.Parameter(torch.empty(width, dtype=config.params_dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.empty_like(self.weight)) if has_bias else None
        # In both cases each rank normalizes different rows with the same weights.
        mark_partial_grad(self, on_heads or config.sequence_parallel)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Normalize each row."""
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ProjectionNorm(nn.Module):
    """RMSNorm over all heads of a row together, those of other ranks included (OLMo 2).

    Args:
        config: epsilon and dtype.
        heads: number of heads on this rank.
        head_dim: width of a head.
        group: the tensor parallel group, over which the heads of a row are distributed.
    """

    def __init__(
        self, config: TransformerConfig, heads: int, head_dim: int, *, group: dist.ProcessGroup
    ) -> None:
        super().__init__()
        self.eps = config.layernorm_epsilon
        self.group = group
        self.weight = nn.Parameter(torch.empty(heads * head_dim, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(
        self, x: Float[Tensor, "*rows heads head_dim"]
    ) -> Float[Tensor, "*rows heads head_dim"]:
        """Normalize each row by the root mean square over all its heads."""
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = x32.square().mean(dim=(-2, -1), keepdim=True)
        # The gradient needs two collectives' worth of care. reduce_from: forward all-reduce,
        # backward identity. copy_to: forward identity, backward all-reduce. Together the sum is
        # differentiated correctly: every rank's output depends on it, so every rank's gradient
        # with respect to the sum must be added up.
        mean_square = reduce_from_tensor_model_parallel_region(mean_square, group=self.group)
        mean_square = copy_to_tensor_model_parallel_region(mean_square, group=self.group)
        normed = x32 * torch.rsqrt(mean_square / self.group.size() + self.eps)
        return (normed * self.weight.view(x.shape[-2:])).to(x.dtype)
