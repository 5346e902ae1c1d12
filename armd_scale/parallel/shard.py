"""Which part of a full tensor a tensor-parallel rank holds.

megatron-core marks every tensor-parallel parameter with the dimension it is split along and with a
stride: the number of equal parts that are split one by one (2 for the gate and up halves of a gated
MLP, which every rank holds its share of).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TensorSplit:
    """How a parameter is split over the tensor-parallel group; `dim` is None where it is whole."""

    dim: int | None
    stride: int
    rank: int
    size: int

    def full_shape(self, local: torch.Size) -> tuple[int, ...]:
        """Shape of the full tensor whose local part has shape `local`."""
        return tuple(n * self.size if d == self.dim else n for d, n in enumerate(local))

    def local_part(self, full: Tensor) -> Tensor:
        """This rank's part of the full tensor."""
        if self.dim is None or self.size == 1:
            return full
        parts = full.chunk(self.stride, dim=self.dim)
        mine = [part.chunk(self.size, dim=self.dim)[self.rank] for part in parts]
        return torch.cat(mine, dim=self.dim)


def split_of(parameter: Any, group: dist.ProcessGroup) -> TensorSplit:
    """How `parameter` is split over `group`, read from megatron-core's marks on it."""
    is_split = getattr(parameter, "tensor_model_parallel", False)
    return TensorSplit(
        dim=parameter.partition_dim if is_split else None,
        stride=parameter.partition_stride if is_split else 1,
        rank=dist.get_rank(group),
        size=dist.get_world_size(group) if is_split else 1,
    )


def mark_sequence_parallel(module: nn.Module, is_on: bool) -> None:
    """Marks a module's parameters as used on each rank's own rows.

    Under sequence parallelism a rank sees its share of the rows only, so gradients of parameters
    that every rank holds whole must be summed over the tensor-parallel group; megatron-core finds
    them by this mark.
    """
    for parameter in module.parameters():
        mark: Any = parameter
        mark.sequence_parallel = is_on
