"""Sums of gradients that several ranks of one model hold in part, before the optimizer step.

Two kinds of parameters are held whole by several ranks, each of which sees only part of the
gradient:

* marked by `mark_partial_grad`: norms and row-parallel biases under sequence parallelism (each
  tensor parallel rank applies them to its own rows), and norms of attention heads (each rank has
  its own heads). They are summed over the tensor parallel group.
* a tied embedding in a pipeline: the first stage looks tokens up in it, the last stage predicts
  with it. It is summed over the embedding group, the first and last stage.

DeepSpeed knows of neither; it averages over data parallel ranks only.
"""

from collections.abc import Mapping

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn


def all_reduce_partial_grads(
    parameters: Mapping[str, nn.Parameter],
    *,
    tied: str | None,
    groups: ProcessGroupCollection,
) -> None:
    """Complete the gradients of shared parameters in place, after the last backward pass.

    Collective over the tensor parallel and the embedding group: all ranks iterate over the
    parameters in the same order, that of their names in the network.

    Args:
        parameters: this rank's parameters by name; each has a gradient.
        tied: name of the embedding that two stages share; None if no parameter is shared.
        groups: the process groups of the layout.
    """
    if groups.tp.size() > 1:
        for parameter in parameters.values():
            if getattr(parameter, "sequence_parallel", False):
                dist.all_reduce(_grad(parameter), group=groups.tp)
    # Stages between the first and the last hold no copy, and are not members of the embedding
    # group.
    if tied is not None and tied in parameters:
        dist.all_reduce(_grad(parameters[tied]), group=groups.embd)


def register_partial_grad_hooks(
    parameters: Mapping[str, nn.Parameter], groups: ProcessGroupCollection
) -> None:
    """Register hooks that all-reduce the gradients of marked parameters in each backward pass.

    Needed when DeepSpeed partitions gradients during the backward pass (ZeRO 2 and 3): after it no
    rank holds a whole gradient that could be summed. The hooks run before DeepSpeed's own. All
    tensor parallel ranks have the same autograd graph, hence reach the hooks in the same order, so
    the collectives match.
    """

    def all_reduced(grad: Tensor) -> Tensor:
        # Autograd may share the tensor with another consumer, so it must not be changed in place.
        total = grad.clone()
        dist.all_reduce(total, group=groups.tp)
        return total

    if groups.tp.size() > 1:
        for parameter in parameters.values():
            if getattr(parameter, "sequence_parallel", False):
                parameter.register_hook(all_reduced)


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in every step"
    return parameter.grad
