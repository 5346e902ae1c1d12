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
    vocab_size: int,
    group: dist.ProcessGroup,
) -> Float[Tensor, "*rows"]:
    """-log softmax(logits)[label] without gathering logits: three reductions of a number a row.

    Computed in float32, or in float64 where the logits are. megatron-core's own loss works in place
    and in float32 only, which would rule out the float64 proofs of exactness.

    Args:
        logits: this rank's columns of the logits, padding included.
        labels: token ids of the whole vocabulary, the same on every rank of the group.
        first_token: the token id of this rank's first column.
        vocab_size: number of tokens; columns beyond are padding and get no probability.
        group: the tensor-parallel group.

    Returns:
        nats per row, the same on every rank of the group.
    """
    shifted, partition = _shifted(logits, vocab_size - first_token, group)
    column = labels - first_token
    is_here = (column >= 0) & (column < shifted.shape[-1])
    picked = shifted.gather(-1, column.where(is_here, 0).unsqueeze(-1)).squeeze(-1)
    label_logit = _sum_over_ranks(picked.where(is_here, 0), group)
    return partition.log() - label_logit


def vocabulary_parallel_kl(
    parent_logits: Float[Tensor, "*rows local_vocabulary"],
    logits: Float[Tensor, "*rows local_vocabulary"],
    *,
    first_token: int,
    vocab_size: int,
    group: dist.ProcessGroup,
) -> Float[Tensor, "*rows"]:
    """KL(parent || model) = sum_v p_v (log p_v - log q_v), again without gathering logits.

    Equal logits give exactly 0. Gradients go to the model alone, whose logits get q - p.

    Args:
        parent_logits: this rank's columns of the parent's logits, padding included.
        logits: the same columns of the model's.
        first_token: the token id of this rank's first column.
        vocab_size: number of tokens; columns beyond are padding and get no probability.
        group: the tensor-parallel group.

    Returns:
        nats per row, the same on every rank of the group.
    """
    num_tokens = vocab_size - first_token
    theirs, their_partition = _shifted(parent_logits.detach(), num_tokens, group)
    ours, our_partition = _shifted(logits, num_tokens, group)
    probability = theirs.exp() / their_partition.unsqueeze(-1)
    # The column of a rank of padding alone is -inf on both sides.
    difference = (theirs - ours).where(probability > 0, 0.0)
    mean = _sum_over_ranks((probability * difference).sum(dim=-1), group)
    return mean - their_partition.log() + our_partition.log()


def _shifted(
    logits: Float[Tensor, "*rows columns"], num_tokens: int, group: dist.ProcessGroup
) -> tuple[Float[Tensor, "*rows kept"], Float[Tensor, "*rows"]]:
    """Logits of real tokens less the row's largest on any rank, and the sum of exponentials."""
    logits = _without_padding(logits, num_tokens)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    largest = logits.detach().amax(dim=-1)
    if dist.get_world_size(group) > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - largest.unsqueeze(-1)
    return shifted, _sum_over_ranks(shifted.exp().sum(dim=-1), group)


def _sum_over_ranks(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks; megatron-core's reduction gives back strided values as they were."""
    return reduce_from_tensor_model_parallel_region(values.contiguous(), group=group)


def _without_padding(
    logits: Float[Tensor, "*rows columns"], num_tokens: int
) -> Float[Tensor, "*rows kept"]:
    """The first `num_tokens` columns; a rank of padding alone keeps one, of probability 0."""
    kept = logits[..., : max(num_tokens, 1)]
    return kept if num_tokens > 0 else kept.masked_fill(torch.ones_like(kept) > 0, -torch.inf)


def sum_over_targets(
    nll: Float[Tensor, "batch queries"], is_target: Bool[Tensor, "batch queries"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Summed nats and number of targets; whoever holds the whole global batch divides, once."""
    return nll.where(is_target, 0.0).sum(), is_target.sum()
