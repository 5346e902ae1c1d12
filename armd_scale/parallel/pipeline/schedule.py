"""Runs a step's micro-batches through megatron-core's schedules.

The same call serves one process and a pipeline: megatron-core picks the schedule from the layout
(none, 1F1B, interleaved 1F1B), and a machine without CUDA runs the very same code.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu
from armd_scale.parallel.pipeline.p2p import ArmdP2PCommunicator


class ScheduledChunk(nn.Module):
    """What the schedule sees of a stage: megatron-core's configuration and a forward call.

    The forward may go through a training engine, whose own `config` attribute is something else; so
    the schedule is handed this instead.

    Args:
        forward: from a micro-batch to the stage's output.
        set_input: takes the output of the stage before; None comes before the first.
        config: megatron-core's configuration of the network.
    """

    model_type = ModelType.encoder_or_decoder

    def __init__(
        self,
        forward: Callable[[Any], Any],
        set_input: Callable[[Tensor | None], None],
        config: TransformerConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self._call, self._set_input = forward, set_input

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Takes the previous stage's output, as the schedule hands it over."""
        self._set_input(input_tensor[0])

    def forward(self, batch: Any) -> Any:
        """The stage's output for one micro-batch: rows for the next; of the last, its results."""
        return self._call(batch)


def run_micro_batches(
    stages: Sequence[ScheduledChunk],
    batches: Sequence[Any],
    *,
    loss_fn: Callable[[Any, Any], tuple[Tensor, Any]],
    groups: ProcessGroupCollection,
    forward_only: bool = False,
) -> list[Any]:
    """Forward and backward of every micro-batch; gradients add up on the parameters.

    Args:
        stages: this process's chunks of the network, in the order of data flow.
        batches: the micro-batches of one step, the same on all stages of a pipeline.
        loss_of: from the last stage's output and its batch to (loss, anything to report). The
            step's gradient is that of the sum of the losses.
        groups: the process groups of the layout.
        forward_only: leave the backward pass out.

    Returns:
        What `loss_of` reported, by micro-batch; nothing where the last stage is elsewhere.
    """
    count = len(batches)

    def forward_step(
        iterator: Any, stage: nn.Module
    ) -> tuple[Any, Callable[[Any], tuple[Tensor, Any]]]:
        batch = next(iterator)

        def loss(output: Any) -> tuple[Tensor, Any]:
            value, report = loss_fn(output, batch)
            return value * count, report  # the schedule divides by the number of micro-batches

        return stage(batch), loss

    schedule_kwargs = {}
    if groups.pp.size() > 1:
        schedule_kwargs["p2p_communicator"] = ArmdP2PCommunicator(groups.pp, stages[0].config)
    run = get_forward_backward_func(pp_size=groups.pp.size(), vp_size=_chunks(stages))
    with patch_cuda_for_cpu(), torch.set_grad_enabled(not forward_only):
        return run(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in stages],
            model=list(stages),
            num_microbatches=count,
            seq_length=1,  # shapes differ between stages and travel with the messages
            micro_batch_size=1,
            forward_only=forward_only,
            pg_collection=groups,
            **schedule_kwargs,
        )


def _chunks(stages: Sequence[ScheduledChunk]) -> int | None:
    return len(stages) if len(stages) > 1 else None


def reduce_loss(values: Sequence[Tensor], groups: ProcessGroupCollection) -> Tensor:
    """The sum over micro-batches and data parallelism, on every process of the job."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total = torch.zeros((), dtype=torch.float64, device=device)
    for value in values:
        total += value.double()
    for group in (groups.dp, groups.pp):
        dist.all_reduce(total, group=group)
    return total
