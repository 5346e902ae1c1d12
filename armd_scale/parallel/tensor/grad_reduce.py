"""Gradients that processes of one model hold in part, summed before the optimizer sees them."""

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
    """Completes the gradients of parameters that several processes of one model share.

    Marked parameters (norms and biases under sequence parallelism, norms of heads) are summed over
    the tensor-parallel group; a tied embedding over the stages that hold it, first and last.

    Args:
        parameters: this process's parameters by name.
        tied: name of the tied embedding, or None where nothing is tied across stages.
        groups: the process groups of the layout.
    """
    if groups.tp.size() > 1:
        for parameter in parameters.values():
            if getattr(parameter, "sequence_parallel", False):
                dist.all_reduce(_gradient(parameter), group=groups.tp)
    if tied is not None and tied in parameters:
        dist.all_reduce(_gradient(parameters[tied]), group=groups.embd)


def register_partial_grad_hooks(
    parameters: Mapping[str, nn.Parameter], groups: ProcessGroupCollection
) -> None:
    """Has every backward pass from now on sum the gradients of marked parameters as they appear.

    For an engine that shares gradients out within the backward pass. All tensor-parallel ranks
    have the same graph, so they come to the same parameters in the same order.
    """

    def summed(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total, group=groups.tp)
        return total

    if groups.tp.size() > 1:
        for parameter in parameters.values():
            if getattr(parameter, "sequence_parallel", False):
                parameter.register_hook(summed)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in every step"
    return parameter.grad
