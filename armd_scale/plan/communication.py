"""Bytes that one rank sends in a step, by parallel dimension.

Collectives are counted as rings: an all-gather or reduce-scatter of n bytes over k ranks sends
n (k - 1) / k bytes from each rank, and an all-reduce is one of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from armd_scale.config import derived
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.parallel.pipeline.partition import PipelineStage
from armd_scale.plan.activations import bytes_per_value
from armd_scale.plan.compute import LayerRows, layer_rows
from armd_scale.plan.memory import chunk_parameters

REUSE_ELEMENTS = 1_000_000_000
"""DeepSpeed's stage3_max_reuse_distance: a gathered weight stays gathered if it is needed again
before this many weights have been used."""


@dataclass(frozen=True, kw_only=True)
class CommunicationVolume:
    """Bytes sent by one rank."""

    tensor: float
    """To tensor-parallel ranks, per micro-batch."""
    pipeline: float
    """To neighboring pipeline stages, per micro-batch."""
    data: float
    """To data-parallel ranks, per step."""


def communication_volume(
    recipe: ResolvedRecipe, chunks: Sequence[PipelineStage], *, replicas: int, one_stream: bool
) -> CommunicationVolume:
    """Count what one rank of a pipeline stage sends.

    Args:
        recipe: a resolved recipe.
        chunks: the rank's chunks of the network.
        replicas: data-parallel size.
        one_stream: whether the query stream runs alone.
    """
    rows = layer_rows(recipe.model, one_stream=one_stream)
    num_parameters = sum(chunk_parameters(recipe, chunk) for chunk in chunks)
    return CommunicationVolume(
        tensor=sum(_tensor_bytes(recipe, chunk, rows) for chunk in chunks),
        pipeline=sum(_pipeline_bytes(recipe, chunk, rows) for chunk in chunks),
        data=data_parallel_bytes(recipe, num_parameters, replicas),
    )


def _row_bytes(recipe: ResolvedRecipe) -> int:
    """Bytes of one full-width row for every target of a micro-batch."""
    targets = recipe.data.seq_length * recipe.train.micro_batch
    return targets * recipe.model.hidden * bytes_per_value(recipe)


def _tensor_bytes(recipe: ResolvedRecipe, chunk: PipelineStage, rows: Sequence[LayerRows]) -> float:
    tensor, sequence = recipe.parallel.tensor, recipe.parallel.sequence
    passes = sum(_layer_passes(recipe, rows[layer]) for layer in chunk.layers)
    if chunk.is_first:
        # The vocabulary-parallel embedding: an all-reduce, or a reduce-scatter.
        passes += rows[0].entering * (1 if sequence else 2)
    if chunk.is_last:
        passes += 2  # the gradient of the head's input
    return passes * _row_bytes(recipe) * (tensor - 1) / tensor


def _layer_passes(recipe: ResolvedRecipe, rows: LayerRows) -> int:
    """Gathers and scatters of one row per target, in forward, backward and recomputation.

    With sequence parallelism the MLP's input is gathered a second time for the gradient of its
    weights, while attention's gathered input is kept; the last two-stream layer scatters its query
    rows again, because dropping the content rows moves the bounds of the shards.
    """
    inputs, outputs = rows.entering, rows.attending
    if recipe.parallel.sequence:
        resharded = inputs + outputs if inputs > outputs else 0
        forward, backward, attention = inputs + 3 * outputs, inputs + 4 * outputs, inputs + outputs
    else:
        # An all-reduce counts as two passes.
        resharded = 0
        forward, backward, attention = 4 * outputs, 2 * inputs + 2 * outputs, 2 * outputs
    recomputed = {"none": 0, "selective": attention, "full": forward + (inputs if resharded else 0)}
    return forward + backward + resharded + recomputed[recipe.train.recompute]


def _pipeline_bytes(
    recipe: ResolvedRecipe, chunk: PipelineStage, rows: Sequence[LayerRows]
) -> float:
    """Activations to the next stage and gradients to the previous one."""
    first, last = chunk.layers[0], chunk.layers[-1]
    activations = 0 if chunk.is_last else rows[last + 1].entering
    gradients = 0 if chunk.is_first else rows[first].entering
    # With sequence parallelism each tensor rank sends its own rows only.
    shards = recipe.parallel.tensor if recipe.parallel.sequence else 1
    return (activations + gradients) * _row_bytes(recipe) / shards


def data_parallel_bytes(recipe: ResolvedRecipe, num_parameters: int, replicas: int) -> float:
    """Count the gradients that data-parallel ranks reduce in a step, and the weights they gather.

    Args:
        recipe: the recipe.
        num_parameters: weights on this rank before ZeRO splits them.
        replicas: data-parallel size.
    """
    micro_batches = derived.accumulation_steps(recipe.train, replicas)
    reductions = (
        micro_batches
        if derived.reduces_every_micro_batch(recipe.optim, pipeline_size=recipe.parallel.pipeline)
        else 1
    )
    # In ring passes over all weights; an all-reduce is two. Stages 1 and 2 all-reduce every bucket
    # of gradients (DeepSpeed's use_multi_rank_bucket_allreduce) and gather the updated weights
    # once. Stage 3 reduce-scatters gradients and gathers weights for every micro-batch.
    passes = {
        0: 2 * reductions,
        1: 2 * reductions + 1,
        2: 2 * reductions + 1,
        3: reductions + micro_batches * _gathers_per_micro_batch(num_parameters),
    }[recipe.optim.zero_stage]
    return passes * num_parameters * bytes_per_value(recipe) * (replicas - 1) / replicas


def _gathers_per_micro_batch(num_parameters: int) -> float:
    """Times that ZeRO 3 gathers a weight for one micro-batch, averaged over weights: 1 to 2.

    Once for the forward pass, and again for the backward pass unless the weight stayed gathered.
    Between its forward and its backward use, the later weights are used twice, so the last half
    of REUSE_ELEMENTS stay.
    """
    return 1 + max(0.0, 1 - REUSE_ELEMENTS / 2 / num_parameters)
