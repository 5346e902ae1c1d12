"""Runs a step's micro-batches through megatron-core's schedules.

The same call serves one process and a pipeline: megatron-core picks the schedule from the layout,
and on a machine without CUDA runs the very same code.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from armd_scale.parallel.cpu import cpu_stands_in_for_cuda


class ScheduledStage(nn.Module):
    """What the schedule sees of a stage: megatron-core's configuration and a forward call.

    The forward may be a module wrapped in a training engine, whose own `config` attribute is
    something else; so the schedule is handed this instead.
    """

    model_type = ModelType.encoder_or_decoder

    def __init__(self, forward: Callable[[Any], Tensor], config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self._call = forward

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Takes the previous stage's output; a single stage has none."""
        assert input_tensor in (None, [None]), "one pipeline stage takes its input from the batch"

    def forward(self, batch: Any) -> Tensor:
        """The stage's output for one micro-batch."""
        return self._call(batch)


def run_micro_batches(
    stage: ScheduledStage,
    batches: Sequence[Any],
    *,
    loss_of: Callable[[Tensor, Any], tuple[Tensor, Any]],
    groups: ProcessGroupCollection,
    forward_only: bool = False,
) -> list[Any]:
    """Forward and backward of every micro-batch; gradients add up on the parameters.

    Args:
        stage: this process's part of the network.
        batches: the micro-batches of one step.
        loss_of: from a stage output and its batch to (loss, anything to report). The step's
            gradient is that of the sum of the losses.
        groups: the process groups of the layout.
        forward_only: leave the backward pass out.

    Returns:
        What `loss_of` reported, by micro-batch.
    """
    count = len(batches)

    def forward_step(
        iterator: Any, model: nn.Module
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Any]]]:
        batch = next(iterator)

        def loss(output: Tensor) -> tuple[Tensor, Any]:
            value, report = loss_of(output, batch)
            return value * count, report  # the schedule divides by the number of micro-batches

        return model(batch), loss

    with cpu_stands_in_for_cuda(), torch.set_grad_enabled(not forward_only):
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=stage,
            num_microbatches=count,
            seq_length=1,  # message shapes vary by stage and travel with the messages
            micro_batch_size=1,
            forward_only=forward_only,
        )
