"""Initial weights, drawn by parameter name.

Every tensor is drawn whole from a generator seeded by (run seed, name), and a rank keeps its part:
the network a run starts from does not depend on the layout, and adding a parameter moves no other.
"""

import hashlib
import math
from collections.abc import Collection

import torch
from torch import nn

from armd_scale.config.schema import ModelConfig
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.tensor.partition import tensor_partition


@torch.no_grad()
def init_weights(network: ArmdModel, *, seed: int, names: Collection[str] | None = None) -> None:
    """Fills every parameter of the network, or of a part of it, in place; or those named alone.

    Matrices and embeddings are normal with `model.init_std`; those that write to the residual
    stream are narrower by sqrt(2 x layers) (GPT-2). Norms are one, biases zero. The gap table
    starts at zero, so that a hidden token between anchor and target changes nothing until it is
    learned.
    """
    for name, parameter in network.parameters_by_name().items():
        if names is not None and name not in names:
            continue
        split = tensor_partition(parameter, network.groups.tp)
        full = torch.empty(split.full_shape(parameter.shape), dtype=torch.float32)
        init_parameter(full, name, model=network.model, seed=seed)
        parameter.copy_(split.local_part(full))


def init_parameter(full: torch.Tensor, name: str, *, model: ModelConfig, seed: int) -> None:
    """Fills the whole of one parameter, which `name` says, in place."""
    generator = torch.Generator().manual_seed(_seed_of(seed, name))
    if name.endswith(("norm.weight", "prefix.scale")):
        # Beside an anchor the prefix comes in gradually; alone it must start the row.
        nn.init.constant_(full, 0.0 if name.endswith("scale") and "+" in model.query else 1.0)
    elif name.endswith("bias") or "query_start.gap" in name:
        nn.init.zeros_(full)
    elif name.endswith("prefix.position_embedding"):
        # <PE_p, PE_p> is 1 on average, and <PE_p, PE_j> stays near 0 until it is learned.
        nn.init.normal_(full, std=model.prefix_width**-0.5, generator=generator)
    else:
        writes_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = model.init_std / math.sqrt(2 * model.layers) if writes_residual else model.init_std
        nn.init.normal_(full, std=std, generator=generator)


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
