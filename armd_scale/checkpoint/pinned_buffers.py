"""Copies in host memory of what this process writes, so that training can go on meanwhile."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.sharded_io import Network, is_main_replica


class HostBuffers:
    """Takes tensors one by one and keeps what this process writes of them.

    Tensors that another process writes become shapes without values, so that whoever gathers
    tensors need not hold more than one of them. Copies are made into memory that the next save uses
    again: the first touch of fresh memory takes six times as long as the copy.

    Args:
        network: whose parameters the tensors belong to.
        groups: the process groups of the layout.
        reuse: copy always. Otherwise tensors on the CPU stay where they are, for a save that is
            waited for.
    """

    def __init__(self, network: Network, groups: ProcessGroupCollection, *, reuse: bool) -> None:
        self._written = {
            name
            for name in network.parameters_by_name()
            if is_main_replica(name, network=network, groups=groups)
        }
        self._reuse = reuse
        self._copies: dict[tuple[str, str], Tensor] = {}

    def copy_to_host(self, section: str, name: str, tensor: Tensor) -> Tensor:
        """The section's tensor as it is to be written; on CUDA only after `synchronize`."""
        if name not in self._written:
            return tensor.detach().to("meta")
        if not self._reuse:
            return tensor.detach().cpu()
        copy = self._copies.get((section, name))
        if copy is None:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._copies[section, name] = copy
        return copy.copy_(tensor.detach(), non_blocking=True)

    def synchronize(self) -> None:
        """Returns when all copies hold their values."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
