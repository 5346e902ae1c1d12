"""Partition of parameters over tensor parallel ranks, and the marks that describe it.

megatron-core marks every tensor parallel parameter with the dimension it is split along and with a
stride: the number of equal sections that are split separately. The first matrix of a gated MLP
holds a gate and an up section; every rank needs its share of both, so its stride is 2:

    full    [gate 0 | gate 1 | up 0 | up 1]        rank 0    [gate 0 | up 0]
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TensorPartition:
    """The split of a parameter over the tensor parallel group."""

    dim: int | None
    """Dimension that is split; None if every rank holds the whole parameter."""
    stride: int
    """Number of equal sections along `dim` that are split separately."""
    rank: int
    size: int

    def full_shape(self, local: torch.Size) -> tuple[int, ...]:
        """Return the shape of the full tensor whose local part has shape `local`."""
        return tuple(n * self.size if d == self.dim else n for d, n in enumerate(local))

    def local_part(self, full: Tensor) -> Tensor:
        """Return this rank's part of the full tensor."""
        if self.dim is None or self.size == 1:
            return full
        # Each section is split by itself, so that a rank gets its share of gate and of up.
        sections = full.chunk(self.stride, dim=self.dim)
        local_sections = [section.chunk(self.size, self.dim)[self.rank] for section in sections]
        return torch.cat(local_sections, dim=self.dim)


def tensor_partition(parameter: Any, group: dist.ProcessGroup) -> TensorPartition:
    """Read the partition of a parameter over `group` from megatron-core's marks on it."""
    is_split = getattr(parameter, "tensor_model_parallel", False)
    # A parameter that is not split counts as one of a group of size 1, so that `full_shape` and
    # `local_part` leave it as it is.
    return TensorPartition(
        dim=parameter.partition_dim if is_split else None,
        stride=parameter.partition_stride if is_split else 1,
        rank=dist.get_rank(group),
        size=dist.get_world_size(group) if is_split else 1,
    )


def gather_or_copy_input(
    rows: Float[Tensor, "local_rows batch hidden"],
    config: TransformerConfig,
    group: dist.ProcessGroup,
) -> Float[Tensor, "rows batch hidden"]:
    """Return all rows, as the shared input of several column-parallel layers.

    Forward: all-gather over the tensor parallel ranks under sequence parallelism; identity
    otherwise, as every rank has all rows. Backward: reduce-scatter or all-reduce of the gradient.

    The layers that read the result are built with `disable_grad_reduce`, so that the gradient is
    reduced once for all of them here instead of once per layer.
    """
    if group.size() == 1:
        return rows
    # Both functions are differentiable; their backward passes are the reductions.
    if config.sequence_parallel:
        return gather_from_sequence_parallel_region(rows, group=group)
    return copy_to_tensor_model_parallel_region(rows, group=group)


def mark_partial_grad(module: nn.Module, is_partial: bool) -> None:
    """Mark parameters of which each tensor parallel rank computes only a part of the gradient.

    Every rank holds such a parameter whole but applies it to its own rows (sequence parallelism)
    or its own heads, so `grad_reduce` must sum the gradients. The attribute is megatron-core's,
    whose row-parallel layers mark their biases with it.
    """
    for parameter in module.parameters():
        marked: Any = parameter
        marked.sequence_parallel = is_partial


def mark_tied_copy(parameter: Any) -> None:
    """Mark the LM head's copy of an embedding that lives on another pipeline stage.

    DeepSpeed leaves parameters with `ds_pipe_replicated` out of the gradient norm, where the
    embedding itself is counted; counting both would inflate the norm that clipping divides by.
    """
    parameter.is_tied_copy = True
    parameter.ds_pipe_replicated = True
