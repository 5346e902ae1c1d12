"""RMSNorm and LayerNorm that know about tensor and sequence parallelism."""

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
    """RMSNorm or LayerNorm over the last dimension, as the configuration says.

    megatron-core's own norm without CUDA extensions refuses sequence parallelism.

    Args:
        config: which norm, and whether rows are split by sequence parallelism.
        width: of a row.
        on_heads: the rows are heads of this rank, of which others have others.
    """

    def __init__(self, config: TransformerConfig, width: int, *, on_heads: bool = False) -> None:
        super().__init__()
        self.eps = config.layernorm_epsilon
        self.weight = nn.Parameter(torch.empty(width, dtype=config.params_dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.empty_like(self.weight)) if has_bias else None
        mark_partial_grad(self, on_heads or config.sequence_parallel)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Normalises each row."""
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ProjectionNorm(nn.Module):
    """RMSNorm over all heads of a row together, those of other ranks included (OLMo 2).

    Args:
        config: its epsilon and dtype.
        heads: number of heads of this rank.
        head_dim: width of a head.
        group: the ranks that hold the heads of a row.
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
        """Normalises each row by the mean square of all its heads."""
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        square = precise.square().mean(dim=(-2, -1), keepdim=True)
        square = reduce_from_tensor_model_parallel_region(square, group=self.group)
        # Every rank's heads depend on the sum, so its gradient is summed as well.
        square = copy_to_tensor_model_parallel_region(square, group=self.group)
        normed = precise * torch.rsqrt(square / self.group.size() + self.eps)
        return (normed * self.weight.view(x.shape[-2:])).to(x.dtype)
