"""Which part of a full tensor a tensor-parallel rank holds.

megatron-core marks every tensor-parallel parameter with the dimension it is split along and with a
stride: the number of equal parts that are split one by one (2 for the gate and up halves of a gated
MLP, which every rank holds its share of).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TensorPartition:
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


def tensor_partition(parameter: Any, group: dist.ProcessGroup) -> TensorPartition:
    """How `parameter` is split over `group`, read from megatron-core's marks on it."""
    is_split = getattr(parameter, "tensor_model_parallel", False)
    return TensorPartition(
        dim=parameter.partition_dim if is_split else None,
        stride=parameter.partition_stride if is_split else 1,
        rank=dist.get_rank(group),
        size=dist.get_world_size(group) if is_split else 1,
    )


def gather_or_copy_input(
    rows: Tensor, config: TransformerConfig, group: dist.ProcessGroup
) -> Tensor:
    """All rows, as input of column-parallel layers that leave the reduction of gradients to this.

    Forward: under sequence parallelism the ranks' rows are gathered, otherwise each has them all.
    Backward: the ranks' gradients are summed, once for all layers that read the rows.
    """
    if group.size() == 1:
        return rows
    if config.sequence_parallel:
        return gather_from_sequence_parallel_region(rows, group=group)
    return copy_to_tensor_model_parallel_region(rows, group=group)


def mark_partial_grad(module: nn.Module, is_partial: bool) -> None:
    """Marks parameters of which each tensor-parallel rank has a part of the gradient only.

    Every rank holds such a parameter whole, but applies it to its own rows (sequence parallelism)
    or to its own heads, so the gradients must be summed. The name is megatron-core's, whose layers
    mark their biases with it.
    """
    for parameter in module.parameters():
        mark: Any = parameter
        mark.sequence_parallel = is_partial


def mark_tied_copy(parameter: Any) -> None:
    """Marks the head's copy of an embedding that lives on another stage.

    DeepSpeed leaves parameters with the second mark out of the gradient norm, which counts the
    embedding where it lives.
    """
    parameter.is_tied_copy = True
    parameter.ds_pipe_replicated = True
