"""Bytes that a rank sends in a step, by what they are sent for.

Collectives are counted as rings: gathering or scattering a tensor of n bytes over k ranks sends
n (k - 1) / k from each, and an all-reduce is one of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from armd_scale.config import derived as derive
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.parallel.pipeline.partition import PipelineStage
from armd_scale.plan.activations import bytes_per_value
from armd_scale.plan.compute import LayerRows, layer_rows
from armd_scale.plan.memory import chunk_parameters


@dataclass(frozen=True, kw_only=True)
class CommunicationVolume:
    """Bytes sent by one rank."""

    tensor: float
    """Among tensor-parallel ranks, per micro-batch."""
    pipeline: float
    """To the neighbouring stages, per micro-batch."""
    data: float
    """Among data-parallel ranks, per step."""


def messages_of(
    recipe: ResolvedRecipe, chunks: Sequence[PipelineStage], *, replicas: int, one_stream: bool
) -> CommunicationVolume:
    """What a rank of a pipeline stage sends.

    Args:
        recipe: a resolved recipe.
        chunks: the rank's parts of the network.
        replicas: size of data parallelism.
        one_stream: whether the query stream runs alone.
    """
    rows = layer_rows(recipe.model, one_stream=one_stream)
    return CommunicationVolume(
        tensor=sum(_tensor_bytes(recipe, chunk, rows) for chunk in chunks),
        pipeline=sum(_pipeline_bytes(recipe, chunk, rows) for chunk in chunks),
        data=_data_bytes(
            recipe, sum(chunk_parameters(recipe, chunk) for chunk in chunks), replicas
        ),
    )


def _row_bytes(recipe: ResolvedRecipe) -> int:
    """One row for every target of a micro-batch, all of its width."""
    targets = recipe.data.seq_length * recipe.train.micro_batch
    return targets * recipe.model.hidden * bytes_per_value(recipe)


def _tensor_bytes(recipe: ResolvedRecipe, chunk: PipelineStage, rows: Sequence[LayerRows]) -> float:
    tensor, sequence = recipe.parallel.tensor, recipe.parallel.sequence
    passes = sum(_layer_passes(recipe, rows[layer]) for layer in chunk.layers)
    if chunk.is_first:
        passes += rows[0].entering * (1 if sequence else 2)
    if chunk.is_last:
        passes += 2
    return passes * _row_bytes(recipe) * (tensor - 1) / tensor


def _layer_passes(recipe: ResolvedRecipe, rows: LayerRows) -> int:
    """Gathers and scatters of one row per target, in forward, backward and recomputation.

    With sequence parallelism the MLP's input is gathered once more for the gradient of its weights,
    attention's gathered input is kept; the last two-stream layer shares its query rows out anew.
    """
    inputs, outputs = rows.entering, rows.attending
    if recipe.parallel.sequence:
        resharded = inputs + outputs if inputs > outputs else 0
        forward, backward, attention = inputs + 3 * outputs, inputs + 4 * outputs, inputs + outputs
    else:
        resharded = 0
        forward, backward, attention = 4 * outputs, 2 * inputs + 2 * outputs, 2 * outputs
    recomputed = {"none": 0, "selective": attention, "full": forward + (inputs if resharded else 0)}
    return forward + backward + resharded + recomputed[recipe.train.recompute]


def _pipeline_bytes(
    recipe: ResolvedRecipe, chunk: PipelineStage, rows: Sequence[LayerRows]
) -> float:
    """Rows to the next stage, gradients to the one before; sequence parallel ranks send a part."""
    first, last = chunk.layers[0], chunk.layers[-1]
    leaving = 0 if chunk.is_last else rows[last + 1].entering
    entering = 0 if chunk.is_first else rows[first].entering
    shared = recipe.parallel.tensor if recipe.parallel.sequence else 1
    return (leaving + entering) * _row_bytes(recipe) / shared


def _data_bytes(recipe: ResolvedRecipe, count: int, replicas: int) -> float:
    """Gradients, and the weights that ZeRO has split.

    Stages 1 and 2 reduce every bucket to all ranks (DeepSpeed's use_multi_rank_bucket_allreduce);
    stage 3 gathers weights for the forward and again for the backward pass of every micro-batch.
    """
    micro_batches = derive.accumulation_steps(recipe.train, replicas)
    passes = {0: 2, 1: 3, 2: 3, 3: 1 + 2 * micro_batches}[recipe.optim.zero_stage]
    return passes * count * bytes_per_value(recipe) * (replicas - 1) / replicas
