"""RMSNorm and LayerNorm that know about sequence parallelism."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from armd_scale.parallel.shard import mark_partial


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
        self.epsilon = config.layernorm_epsilon
        self.weight = nn.Parameter(torch.empty(width, dtype=config.params_dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.empty_like(self.weight)) if has_bias else None
        mark_partial(self, on_heads or config.sequence_parallel)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Normalises each row."""
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
