"""Parameter groups of AdamW, by weight decay."""

from typing import Any

from torch import nn

from armd_scale.config.schema import OptimConfig


def parameter_groups(network: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups: matrices and embeddings decay; norms, biases and vectors do not.

    Frozen parameters and empty groups are omitted.
    """
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    matrices = [p for _, p in named if p.dim() > 1]
    vectors = [p for _, p in named if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
