"""Host-memory copies of the tensors that this rank writes, so that training can go on meanwhile."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.sharded_io import Network, is_main_replica


class HostBuffers:
    """Copies tensors to host memory one by one, if this rank is the one that writes them.

    A tensor that another rank writes becomes a meta tensor (shape and type only), so that a caller
    who gathers tensors one after another never holds more than one of them. The buffers are reused
    by the next save: the first touch of fresh memory takes six times as long as the copy itself.

    Args:
        network: network whose parameters the tensors belong to.
        groups: process groups of the layout.
        reuse: always copy, into buffers that the next save reuses. If false, tensors on the CPU are
            returned as they are; for a save during which nothing changes them.
    """

    def __init__(self, network: Network, groups: ProcessGroupCollection, *, reuse: bool) -> None:
        self._written_here = {
            name
            for name in network.parameters_by_name()
            if is_main_replica(name, network=network, groups=groups)
        }
        self._reuse = reuse
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def copy_to_host(self, section: str, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor to write; if it comes from CUDA, it is valid only after `synchronize`.

        Args:
            section: section of the checkpoint (`weights`, `exp_avg`, ...).
            name: name of the parameter.
            tensor: the values.
        """
        if name not in self._written_here:
            return tensor.detach().to("meta")
        if not self._reuse:
            return tensor.detach().cpu()
        buffer = self._buffers.get((section, name))
        if buffer is None:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[section, name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=True)

    def synchronize(self) -> None:
        """Block until all copies are complete."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
