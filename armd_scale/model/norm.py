"""RMSNorm and LayerNorm that know about sequence parallelism."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, as the configuration says.

    Under sequence parallelism each rank sees its own rows only, so the gradient of the weight must
    be summed over the tensor-parallel group: the `sequence_parallel` mark asks for that.
    """

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        self.epsilon = config.layernorm_epsilon
        self.weight = nn.Parameter(torch.empty(width, dtype=config.params_dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.empty_like(self.weight)) if has_bias else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Normalises each row."""
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
