"""Initial weights as a function of (run seed, parameter name).

Every tensor is drawn whole, from a generator seeded by the run's seed and the parameter's name, and
each rank keeps its part. So the initial network does not depend on the layout, and adding a
parameter to the architecture does not change the others.
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
    """Initialize the parameters of a network, or of one chunk of it, in place.

    Matrices and embeddings are normal with standard deviation `model.init_std`, divided by
    sqrt(2 * layers) for those that write to the residual stream (GPT-2). Norms are 1, biases 0. The
    gap embedding is 0, so that gaps have no effect until they are learned.

    Args:
        network: the network, or a pipeline stage of it.
        seed: the run's seed.
        names: initialize only these parameters; None for all.
    """
    for name, parameter in network.parameters_by_name().items():
        if names is not None and name not in names:
            continue
        partition = tensor_partition(parameter, network.groups.tp)
        full = torch.empty(partition.full_shape(parameter.shape), dtype=torch.float32)
        init_parameter(full, name, model=network.model, seed=seed)
        parameter.copy_(partition.local_part(full))


def init_parameter(full: torch.Tensor, name: str, *, model: ModelConfig, seed: int) -> None:
    """Initialize one full (unsplit) float32 parameter in place, by the rule for its name."""
    # On the CPU also for CUDA runs: CUDA generators give other numbers on other devices.
    generator = torch.Generator().manual_seed(_derive_seed(seed, name))
    if name.endswith(("norm.weight", "prefix.scale")):
        # Next to an anchor the prefix starts at 0 and fades in; alone it must start the row.
        nn.init.constant_(full, 0.0 if name.endswith("scale") and "+" in model.query else 1.0)
    elif name.endswith("bias") or "query_start.gap" in name:
        nn.init.zeros_(full)
    elif name.endswith("prefix.position_embedding"):
        # With variance 1/width, <PE_p, PE_p> is 1 on average and <PE_p, PE_j> is near 0.
        nn.init.normal_(full, std=model.prefix_width**-0.5, generator=generator)
    else:
        writes_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = model.init_std / math.sqrt(2 * model.layers) if writes_residual else model.init_std
        nn.init.normal_(full, std=std, generator=generator)


def _derive_seed(seed: int, name: str) -> int:
    """Hash seed and name to a non-negative 63-bit seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
