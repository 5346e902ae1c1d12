"""Likelihood of targets from logits whose vocabulary is split over tensor-parallel ranks."""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from torch import Tensor


def vocabulary_parallel_nll(
    logits: Float[Tensor, "*rows local_vocabulary"],
    labels: Int[Tensor, "*rows"],
    *,
    first_token: int,
    group: dist.ProcessGroup,
) -> Float[Tensor, "*rows"]:
    """-log softmax(logits)[label] without gathering logits: three reductions of a number a row.

    Computed in float32, or in float64 where the logits are. megatron-core's own loss works in place
    and in float32 only, which would rule out the float64 proofs of exactness.

    Args:
        logits: this rank's columns of the logits.
        labels: token ids of the whole vocabulary, the same on every rank of the group.
        first_token: the token id of this rank's first column.
        group: the tensor-parallel group.

    Returns:
        nats per row, the same on every rank of the group.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    largest = logits.detach().amax(dim=-1)
    if dist.get_world_size(group) > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - largest.unsqueeze(-1)
    partition = reduce_from_tensor_model_parallel_region(shifted.exp().sum(dim=-1), group=group)

    column = labels - first_token
    is_here = (column >= 0) & (column < logits.shape[-1])
    picked = shifted.gather(-1, column.where(is_here, 0).unsqueeze(-1)).squeeze(-1)
    label_logit = reduce_from_tensor_model_parallel_region(picked * is_here, group=group)
    return partition.log() - label_logit


def sum_over_targets(
    nll: Float[Tensor, "batch queries"], is_target: Bool[Tensor, "batch queries"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Summed nats and number of targets; whoever holds the whole global batch divides, once."""
    return nll.where(is_target, 0.0).sum(), is_target.sum()
