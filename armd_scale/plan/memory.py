"""Bytes that one rank holds, at the two moments that compete for the most.

In the backward pass of the deepest micro-batch: weights, optimizer state, gradients (whole ones
where ZeRO splits them only when the last micro-batch is through), kept activations and what is
being recomputed.
In the update: gradients on their way through a bucket, then AdamW's temporaries.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from armd_scale.config import derived as derive
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.pipeline.partition import PipelineStage, all_stages
from armd_scale.plan.activations import FP32, bytes_per_value, chunk_activations, working_bytes
from armd_scale.plan.gpus import CONTEXT_BYTES, FRAGMENTATION

LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: gathered weights that wait to be used again."""
SCHEDULE_REPEATS = 4
"""A pipeline's schedule repeats itself; so many rounds of micro-batches show its fullest moment."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    """Master weights, moments, running average; what is on the GPU."""
    buffers: float
    """ZeRO 3's bucket, gradient partition and gathered weights."""
    activations: float
    """Kept by forward passes for the backward passes to come."""
    workspace: float
    """Recomputed layer, logits: what one backward pass needs besides."""
    update: float
    """What reduction and AdamW need besides, when no activations are there."""

    @property
    def model_state(self) -> float:
        """Weights, gradients and optimizer, with ZeRO's buffers."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def total(self) -> float:
        """The most that is held at a time, with what CUDA and the allocator take."""
        peak = self.model_state + max(self.activations + self.workspace, self.update)
        return peak * (1 + FRAGMENTATION) + CONTEXT_BYTES


def memory_by_stage(recipe: ResolvedRecipe, world_size: int) -> list[RankMemory]:
    """The memory of a rank of every pipeline stage; tensor- and data-parallel ranks are alike.

    Args:
        recipe: one that passes the rules for `world_size` processes, resolved.
        world_size: number of processes.
    """
    replicas = derive.data_parallel_size(recipe.parallel, world_size)
    return [
        _rank_memory(recipe, chunks, rank=rank, replicas=replicas)
        for rank, chunks in enumerate(chunks_by_rank(recipe))
    ]


def chunks_by_rank(recipe: ResolvedRecipe) -> tuple[tuple[PipelineStage, ...], ...]:
    """The parts of the network that every pipeline rank holds."""
    parallel = ParallelConfig(
        pipeline=recipe.parallel.pipeline, virtual_pipeline=recipe.parallel.virtual_pipeline
    )
    return _chunks_by_rank(recipe.model, parallel, recipe.data.seq_length)


@cache
def _chunks_by_rank(
    model: ResolvedModel, parallel: ParallelConfig, seq_length: int
) -> tuple[tuple[PipelineStage, ...], ...]:
    stages = all_stages(model, parallel, seq_length=seq_length)
    return tuple(tuple(stages[rank :: parallel.pipeline]) for rank in range(parallel.pipeline))


def _rank_memory(
    recipe: ResolvedRecipe, chunks: Sequence[PipelineStage], *, rank: int, replicas: int
) -> RankMemory:
    count = sum(chunk_parameters(recipe, chunk) for chunk in chunks)
    state = _state(recipe, count, replicas)
    micro_batches = derive.accumulation_steps(recipe.train, replicas)
    kept = [chunk_activations(recipe, chunk) for chunk in chunks]
    held = peak_in_flight_activations(recipe, rank=rank, micro_batches=micro_batches, kept=kept)
    working = max(working_bytes(recipe, chunk) for chunk in chunks)
    return RankMemory(**state, activations=held, workspace=working)


def _state(recipe: ResolvedRecipe, count: int, replicas: int) -> dict[str, float]:
    """What holds weights in one form or another, as DeepSpeed 0.19 keeps it (measured)."""
    stage, width = recipe.optim.zero_stage, bytes_per_value(recipe)
    share = count / replicas if stage > 0 else count
    bucket = width * min(derive.REDUCE_BUCKET_SIZE, count)
    master = FP32 * share if stage > 0 else 0
    average = FP32 * count if recipe.optim.ema_decay is not None else 0
    on_gpu = recipe.optim.offload == "none"
    reduces_early = derive.reduces_every_micro_batch(
        recipe.optim, pipeline_size=recipe.parallel.pipeline
    )
    adam = 2 * FP32 * share if on_gpu else 0  # torch's foreach AdamW: gradient and one temporary
    gathered = width * min(count, LIVE_ELEMENTS)
    state = {
        "weights": width * (share if stage == 3 else count),
        "gradients": width * (share if reduces_early else count),
        "optimizer": (master + 2 * FP32 * share) * on_gpu + average,
        "buffers": bucket + gathered if stage == 3 else 0,
        "update": max(bucket if stage in (1, 2) else 0, adam),
    }
    return {name: float(value) for name, value in state.items()}


def chunk_parameters(recipe: ResolvedRecipe, chunk: PipelineStage) -> int:
    """Weights that a rank holds of one chunk of the network."""
    model, tensor = recipe.model, recipe.parallel.tensor
    embedding = derive.padded_vocab_size(model.vocab_size, tensor) // tensor * model.hidden
    count = len(chunk.layers) * _layer_parameters(model, tensor)
    if chunk.is_first:
        learned = (
            model.position_table_rows * model.hidden
            if model.position_embedding == "learned_absolute"
            else 0
        )
        count += embedding + learned + derive.num_query_init_parameters(model)
    if chunk.is_last:
        tied_here = model.tie_embeddings and chunk.is_first
        count += _norm(model) + (0 if tied_here else embedding)
    return count


def _layer_parameters(model: ResolvedModel, tensor: int) -> int:
    """Matrices and the biases of their columns are split; norms and the biases of rows are not."""
    whole = 2 * _norm(model) + model.hidden * (model.attention_output_bias + model.mlp_bias)
    if model.qk_norm == "head":
        whole += 2 * model.head_dim * (2 if model.norm == "layernorm" else 1)
    return whole + (derive.num_layer_parameters(model) - whole) // tensor


def _norm(model: ResolvedModel) -> int:
    return model.hidden * (2 if model.norm == "layernorm" else 1)


def peak_in_flight_activations(
    recipe: ResolvedRecipe, *, rank: int, micro_batches: int, kept: Sequence[float]
) -> float:
    """The most bytes of activations that a rank holds under (interleaved) 1F1B.

    Args:
        recipe: for its layout.
        rank: pipeline rank.
        micro_batches: of a step.
        kept: bytes of one micro-batch in each of the rank's chunks.
    """
    pipeline, chunks = recipe.parallel.pipeline, len(kept)
    count = min(micro_batches, SCHEDULE_REPEATS * pipeline) if pipeline > 1 else 1
    waits = pipeline - rank - 1
    warm_up = 2 * waits + (chunks - 1) * pipeline if chunks > 1 else waits
    held, most, live = 0.0, 0.0, Counter[int]()
    backward = _chunk_order(pipeline, chunks, count, backwards=True)
    for number, chunk in enumerate(_chunk_order(pipeline, chunks, count, backwards=False)):
        live[chunk] += 1
        held += kept[chunk]
        most = max(most, held)
        if number >= warm_up:
            held -= kept[next(backward)]
    return most


def _chunk_order(
    pipeline: int, chunks: int, micro_batches: int, *, backwards: bool
) -> Iterator[int]:
    """The chunk of each pass: `pipeline` micro-batches through one chunk, then through the next."""
    for number in range(micro_batches * chunks):
        chunk = number // pipeline % chunks
        yield chunks - 1 - chunk if backwards else chunk


def gib(value: float) -> float:
    """Bytes in GiB."""
    return value / math.pow(2, 30)
