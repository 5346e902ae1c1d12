"""The network as the pipeline schedule sees it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from armd_scale.model.loss_spec import LossSpec, TrainMicroBatch
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.parallel.pipeline.schedule import ScheduledChunk
from armd_scale.train.teacher import Teacher


def make_schedule_chunks(
    network: ModelChunks, forward: Callable[..., Any], teacher: Teacher | None = None
) -> list[ScheduledChunk]:
    """Wrap each model chunk of this rank for the schedule, which calls it with `TrainMicroBatch`es.

    Args:
        network: the model chunks of this rank.
        forward: called with (batch, chunk index[, loss]): the network itself, or an engine around
            it.
        teacher: compute its output for every micro-batch that is trained on. The recipe rules allow
            a teacher only without a pipeline, so that the single chunk has the LM head.
    """

    def call(micro_batch: TrainMicroBatch, chunk_index: int) -> Tensor | tuple[Tensor, Tensor]:
        if micro_batch.loss_weights is None:  # evaluation: no loss, only the nats of every target
            return forward(micro_batch.batch, chunk_index)
        reference = None if teacher is None else teacher.reference(micro_batch.batch)
        return forward(
            micro_batch.batch, chunk_index, LossSpec(micro_batch.loss_weights, reference)
        )

    return [
        ScheduledChunk(
            # partial, not a closure over the loop variable, which all chunks would share
            partial(call, chunk_index=index),
            model.set_input_tensor,
            network.transformer_config,
        )
        for index, model in enumerate(network.models)
    ]
