"""Bytes that one rank holds, at the two moments that compete for the peak of a step.

1. The backward pass with the most micro-batches in flight: weights, optimizer state, gradients,
   kept activations and the workspace of that backward pass. Gradients are this rank's shard where
   ZeRO reduces them after every micro-batch (stages 2 and 3 without a pipeline), otherwise whole.
2. The optimizer update: gradients in a reduction bucket, then AdamW's temporaries.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from armd_scale.config import derived
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.pipeline.partition import PipelineStage, all_stages
from armd_scale.plan.activations import FP32, bytes_per_value, chunk_activations, workspace_bytes
from armd_scale.plan.gpus import CONTEXT_BYTES, FRAGMENTATION

LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: gathered weights kept because they are needed again."""
SCHEDULE_REPEATS = 4
"""The 1F1B schedule is periodic; this many micro-batches per stage contain its peak."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank, by use."""

    weights: float
    gradients: float
    optimizer: float
    """FP32 master weights, AdamW's moments and the weight average, if they are on the GPU."""
    buffers: float
    """ZeRO 3's reduction bucket and gathered weights, allocated for the whole run."""
    activations: float
    """Kept by forward passes for their backward passes."""
    workspace: float
    """Temporaries of one backward pass: a recomputed layer, or a chunk of logits."""
    update: float
    """Temporaries of gradient reduction and AdamW, when no activations are alive."""

    @property
    def model_state(self) -> float:
        """Weights, gradients, optimizer state and ZeRO's buffers."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def total(self) -> float:
        """Peak of a step, with the CUDA context and the allocator's fragmentation."""
        # No activations are alive during the update, so the two moments never add up.
        peak = self.model_state + max(self.activations + self.workspace, self.update)
        return peak * (1 + FRAGMENTATION) + CONTEXT_BYTES


def memory_by_stage(recipe: ResolvedRecipe, world_size: int) -> list[RankMemory]:
    """Return the memory of one rank of each pipeline stage (tensor and data ranks are alike).

    Args:
        recipe: passes the rules for `world_size` processes; it is resolved.
        world_size: number of processes.
    """
    replicas = derived.data_parallel_size(recipe.parallel, world_size)
    return [
        _rank_memory(recipe, chunks, rank=rank, replicas=replicas)
        for rank, chunks in enumerate(chunks_by_rank(recipe))
    ]


def chunks_by_rank(recipe: ResolvedRecipe) -> tuple[tuple[PipelineStage, ...], ...]:
    """Return the chunks of the network on each pipeline rank; several under interleaving."""
    # A config with the two relevant sizes alone, so that the cache serves all layouts of a search.
    parallel = ParallelConfig(
        pipeline=recipe.parallel.pipeline, virtual_pipeline=recipe.parallel.virtual_pipeline
    )
    return _chunks_by_rank(recipe.model, parallel, recipe.data.seq_length)


@cache
def _chunks_by_rank(
    model: ResolvedModel, parallel: ParallelConfig, seq_length: int
) -> tuple[tuple[PipelineStage, ...], ...]:
    stages = all_stages(model, parallel, seq_length=seq_length)
    # Chunk i is on rank i mod p, as in megatron-core's interleaved schedule.
    return tuple(tuple(stages[rank :: parallel.pipeline]) for rank in range(parallel.pipeline))


def _rank_memory(
    recipe: ResolvedRecipe, chunks: Sequence[PipelineStage], *, rank: int, replicas: int
) -> RankMemory:
    num_parameters = sum(chunk_parameters(recipe, chunk) for chunk in chunks)
    micro_batches = derived.accumulation_steps(recipe.train, replicas)
    chunk_bytes = [chunk_activations(recipe, chunk) for chunk in chunks]
    activations = peak_in_flight_activations(
        recipe, rank=rank, micro_batches=micro_batches, chunk_bytes=chunk_bytes
    )
    workspace = max(workspace_bytes(recipe, chunk) for chunk in chunks)
    state = _model_state_bytes(recipe, num_parameters, replicas)
    return RankMemory(**state, activations=activations, workspace=workspace)


def _model_state_bytes(
    recipe: ResolvedRecipe, num_parameters: int, replicas: int
) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer state as DeepSpeed 0.19 holds them (measured)."""
    stage, width = recipe.optim.zero_stage, bytes_per_value(recipe)
    shard = num_parameters / replicas if stage > 0 else num_parameters
    bucket = width * min(derived.REDUCE_BUCKET_SIZE, num_parameters)
    # Without ZeRO the fp32 weights are their own master copy.
    master = FP32 * shard if stage > 0 else 0
    # Each rank keeps the whole weight average of its chunks, whatever the stage.
    average = FP32 * num_parameters if recipe.optim.ema_decay is not None else 0
    on_gpu = recipe.optim.offload == "none"
    reduces_early = derived.reduces_every_micro_batch(
        recipe.optim, pipeline_size=recipe.parallel.pipeline
    )
    # torch's foreach AdamW: a copy of the gradients and one temporary of the same size.
    adam = 2 * FP32 * shard if on_gpu else 0
    gathered = width * min(num_parameters, LIVE_ELEMENTS)
    state = {
        "weights": width * (shard if stage == 3 else num_parameters),
        "gradients": width * (shard if reduces_early else num_parameters),
        "optimizer": (master + 2 * FP32 * shard) * on_gpu + average,
        "buffers": bucket + gathered if stage == 3 else 0,
        "update": max(bucket if stage in (1, 2) else 0, adam),
    }
    return {name: float(value) for name, value in state.items()}


def chunk_parameters(recipe: ResolvedRecipe, chunk: PipelineStage) -> int:
    """Return the number of weights that one rank holds of a chunk of the network."""
    model, tensor = recipe.model, recipe.parallel.tensor
    embedding = derived.padded_vocab_size(model.vocab_size, tensor) // tensor * model.hidden
    count = len(chunk.layers) * _layer_parameters(model, tensor)
    if chunk.is_first:
        learned = (
            model.position_table_rows * model.hidden
            if model.position_embedding == "learned_absolute"
            else 0
        )
        count += embedding + learned + derived.num_query_start_parameters(model)
    if chunk.is_last:
        # Tied weights on two different stages are stored twice; on one stage, once.
        shares_embedding = model.tie_embeddings and chunk.is_first
        count += _norm_parameters(model) + (0 if shares_embedding else embedding)
    return count


def _layer_parameters(model: ResolvedModel, tensor: int) -> int:
    """Weights of a layer on one tensor-parallel rank.

    Matrices and the biases of column-parallel layers are split; norms and the biases of
    row-parallel layers are on every rank.
    """
    replicated = 2 * _norm_parameters(model)
    replicated += model.hidden * (model.attention_output_bias + model.mlp_bias)
    if model.qk_norm == "head":
        replicated += 2 * model.head_dim * (2 if model.norm == "layernorm" else 1)
    return replicated + (derived.num_layer_parameters(model) - replicated) // tensor


def _norm_parameters(model: ResolvedModel) -> int:
    return model.hidden * (2 if model.norm == "layernorm" else 1)


def peak_in_flight_activations(
    recipe: ResolvedRecipe, *, rank: int, micro_batches: int, chunk_bytes: Sequence[float]
) -> float:
    """Return the peak bytes of activations on a rank under (interleaved) 1F1B.

    Replays the schedule: forward passes of the warm-up, then one forward and one backward in turn.

    Args:
        recipe: its layout counts.
        rank: pipeline rank.
        micro_batches: number in a step.
        chunk_bytes: activations of one micro-batch in each of the rank's chunks, in bytes.
    """
    pipeline, num_chunks = recipe.parallel.pipeline, len(chunk_bytes)
    count = min(micro_batches, SCHEDULE_REPEATS * pipeline) if pipeline > 1 else 1
    # Length of the warm-up as in megatron-core's schedules.py: plain 1F1B runs one forward for each
    # later stage; the interleaved schedule two, and `pipeline` for every chunk but the last.
    later_stages = pipeline - rank - 1
    warm_up = 2 * later_stages + (num_chunks - 1) * pipeline if num_chunks > 1 else later_stages
    current, peak = 0.0, 0.0
    backward_chunks = _chunk_order(pipeline, num_chunks, count, is_backward=True)
    forward_chunks = _chunk_order(pipeline, num_chunks, count, is_backward=False)
    for index, chunk in enumerate(forward_chunks):
        current += chunk_bytes[chunk]
        peak = max(peak, current)
        if index >= warm_up:
            current -= chunk_bytes[next(backward_chunks)]
    return peak


def _chunk_order(
    pipeline: int, num_chunks: int, micro_batches: int, *, is_backward: bool
) -> Iterator[int]:
    """Yield the chunk of each pass: `pipeline` micro-batches through one chunk, then the next."""
    for index in range(micro_batches * num_chunks):
        chunk = index // pipeline % num_chunks
        yield num_chunks - 1 - chunk if is_backward else chunk


def gib(num_bytes: float) -> float:
    """Convert bytes to GiB."""
    return num_bytes / math.pow(2, 30)
