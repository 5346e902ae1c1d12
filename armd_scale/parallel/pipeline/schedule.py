"""Runs the micro-batches of a step through megatron-core's pipeline schedules.

The same call serves one process and a pipeline: megatron-core picks the schedule from the layout
(no pipelining, 1F1B, interleaved 1F1B), and machines without CUDA run the same code.
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
    """A model chunk as the schedule sees it: megatron-core's configuration and a forward call.

    The schedule reads `model.config`. The forward may go through a DeepSpeed engine, whose own
    `config` attribute is a dictionary, so the schedule gets this wrapper instead. It is a module
    because the interleaved schedule requires one.

    Args:
        forward: maps a micro-batch to the output of the stage.
        set_input_tensor: receives the output of the previous stage; None on the first stage.
        config: megatron-core's configuration of the network.
    """

    model_type = ModelType.encoder_or_decoder

    def __init__(
        self,
        forward: Callable[[Any], Any],
        set_input_tensor: Callable[[Tensor | None], None],
        config: TransformerConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self._forward, self._set_input_tensor = forward, set_input_tensor

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Receive the previous stage's output, which the schedule wraps in a list."""
        self._set_input_tensor(input_tensor[0])

    def forward(self, batch: Any) -> Any:
        """Return the stage's output for one micro-batch: rows, or on the last stage its result."""
        return self._forward(batch)


def run_micro_batches(
    chunks: Sequence[ScheduledChunk],
    batches: Sequence[Any],
    *,
    loss_fn: Callable[[Any, Any], tuple[Tensor, Any]],
    groups: ProcessGroupCollection,
    forward_only: bool = False,
) -> list[Any]:
    """Run forward and backward for all micro-batches; gradients accumulate on the parameters.

    Args:
        chunks: this rank's model chunks, in the order of data flow.
        batches: the micro-batches of one step, the same on all stages of a pipeline.
        loss_fn: maps the last stage's output and its micro-batch to (loss, report). The step's
            gradient is that of the sum (not the mean) of the losses.
        groups: the process groups of the layout.
        forward_only: skip the backward pass.

    Returns:
        The reports by micro-batch on the last stage; an empty list on the other stages.
    """
    num_micro_batches = len(batches)

    def forward_step(
        iterator: Any, chunk: nn.Module
    ) -> tuple[Any, Callable[[Any], tuple[Tensor, Any]]]:
        batch = next(iterator)

        def scaled_loss(output: Any) -> tuple[Tensor, Any]:
            loss, report = loss_fn(output, batch)
            # megatron-core divides each loss by the number of micro-batches. Here every loss is
            # already divided by the step's global number of targets, so that is undone.
            return loss * num_micro_batches, report

        return chunk(batch), scaled_loss

    num_stages = groups.pp.size()
    schedule_kwargs = {}
    if num_stages > 1:
        schedule_kwargs["p2p_communicator"] = ArmdP2PCommunicator(groups.pp, chunks[0].config)
    num_chunks = len(chunks) if len(chunks) > 1 else None  # None selects plain 1F1B
    run = get_forward_backward_func(pp_size=num_stages, vp_size=num_chunks)
    with patch_cuda_for_cpu(), torch.set_grad_enabled(not forward_only):
        return run(
            forward_step_func=forward_step,
            # Every chunk sees all micro-batches, but at different times: one iterator each.
            data_iterator=[iter(batches) for _ in chunks],
            model=list(chunks),
            num_microbatches=num_micro_batches,
            # Placeholders: with variable_seq_lengths shapes travel with the messages.
            seq_length=1,
            micro_batch_size=1,
            forward_only=forward_only,
            pg_collection=groups,
            **schedule_kwargs,
        )


def reduce_loss(losses: Sequence[Tensor], groups: ProcessGroupCollection) -> Tensor:
    """Return the sum over micro-batches and data parallel ranks, on every rank (collective).

    Only the last stage has losses; the other stages contribute zero to the sum over the pipeline.
    Tensor parallel ranks hold equal losses and are not summed. In float64, so that the logged loss
    of a large global batch does not depend on the layout in its float32 digits.

    Args:
        losses: scalar losses of this rank's micro-batches; empty except on the last stage.
        groups: the process groups of the layout.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total = torch.zeros((), dtype=torch.float64, device=device)
    for loss in losses:
        total += loss.double()
    for group in (groups.dp, groups.pp):
        dist.all_reduce(total, group=group)
    return total
