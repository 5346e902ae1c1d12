"""Messages between pipeline stages whose rows differ in number.

Lower stages send content and query rows, upper ones the query alone, so megatron-core sends shapes
ahead of tensors. It sends them in one batch; between the two ranks of a pipeline of two, where the
next stage is also the one before, an activation's shape then meets a gradient's. Here shapes go the
way that tensors go when they are not batched: on one group what even ranks send, on another what
they receive, each in order.
"""

from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator, _p2p_ops
from torch import Tensor

DIMENSIONS = 3


class ArmdP2PCommunicator(P2PCommunicator):
    """megatron-core's communicator, with shapes that cannot cross."""

    def _communicate_shapes(
        self,
        tensor_send_next: Tensor | None,
        tensor_send_prev: Tensor | None,
        recv_prev: bool,
        recv_next: bool,
    ) -> tuple[list[int], list[int]]:
        """Exchanges the shapes of what is sent next; [0, 0, 0] where nothing comes."""
        assert self.prev_rank is not None
        assert self.next_rank is not None
        previous = _shape_buffer() if recv_prev else None
        following = _shape_buffer() if recv_next else None
        requests: dict[str, Any] = _p2p_ops(
            tensor_send_prev=_shape_of(tensor_send_prev),
            tensor_recv_prev=previous,
            tensor_send_next=_shape_of(tensor_send_next),
            tensor_recv_next=following,
            group=self.pp_group,
            prev_pipeline_rank=self.prev_rank,
            next_pipeline_rank=self.next_rank,
        )
        for request in requests.values():
            request.wait()
        return _as_list(previous), _as_list(following)


def _shape_buffer() -> Tensor:
    return torch.empty(DIMENSIONS, dtype=torch.int64, device=torch.cuda.current_device())


def _shape_of(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return torch.tensor(tensor.shape, dtype=torch.int64, device=torch.cuda.current_device())


def _as_list(shape: Tensor | None) -> list[int]:
    return [0] * DIMENSIONS if shape is None else shape.tolist()
