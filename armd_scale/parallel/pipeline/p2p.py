"""Point-to-point communication between pipeline stages that exchange different numbers of rows.

Lower stages send 2N rows (content and query), upper stages N (query only), so each tensor's shape
is sent ahead of it. megatron-core sends the shapes with `batch_isend_irecv` on one group. With two
pipeline ranks the next stage is also the previous one: a rank then has two messages to the same
peer in flight, the shape of an activation and that of a gradient, and the receiver may take one for
the other.

Here shapes use the ordering that megatron-core uses for unbatched tensors (`_p2p_ops`): what even
ranks send and what they receive use two different groups, each in a fixed order.
"""

from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator, _p2p_ops
from torch import Tensor

NUM_DIMENSIONS = 3  # [rows, batch, hidden]


class ArmdP2PCommunicator(P2PCommunicator):
    """megatron-core's communicator with ordered, unbatched exchange of shapes."""

    def _communicate_shapes(
        self,
        tensor_send_next: Tensor | None,
        tensor_send_prev: Tensor | None,
        recv_prev: bool,
        recv_next: bool,
    ) -> tuple[list[int], list[int]]:
        """Exchange shapes with both neighbors.

        Overrides the method that megatron-core calls before every exchange of tensors.

        Returns:
            Shapes of the tensors that the previous and the next stage will send; [0, 0, 0] if
            nothing is received from it.
        """
        assert self.prev_rank is not None
        assert self.next_rank is not None
        prev_shape = _shape_buffer() if recv_prev else None
        next_shape = _shape_buffer() if recv_next else None
        requests: dict[str, Any] = _p2p_ops(
            tensor_send_prev=_shape_tensor(tensor_send_prev),
            tensor_recv_prev=prev_shape,
            tensor_send_next=_shape_tensor(tensor_send_next),
            tensor_recv_next=next_shape,
            group=self.pp_group,
            prev_pipeline_rank=self.prev_rank,
            next_pipeline_rank=self.next_rank,
        )
        for request in requests.values():
            request.wait()
        return _as_list(prev_shape), _as_list(next_shape)


def _shape_buffer() -> Tensor:
    return torch.empty(NUM_DIMENSIONS, dtype=torch.int64, device=torch.cuda.current_device())


def _shape_tensor(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return torch.tensor(tensor.shape, dtype=torch.int64, device=torch.cuda.current_device())


def _as_list(shape: Tensor | None) -> list[int]:
    return [0] * NUM_DIMENSIONS if shape is None else shape.tolist()
