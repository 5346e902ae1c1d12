"""Numbers that follow from a recipe: sizes per process, steps, and parameter counts."""

import math

from armd_scale.config.resolve import ResolvedModel
from armd_scale.config.schema import ModelConfig, OptimConfig, ParallelConfig, Recipe, TrainConfig

# Matrix units run fastest on multiples of 64. As a multiple of the usual tensor parallel sizes it
# also gives one padded size, and so one shape in checkpoints, under all of them.
VOCAB_MULTIPLE = 64
# At most this many logits of a rank exist at a time: enough to fill a GPU's matrix units (2^26),
# or few enough to stay in a CPU's caches (2^22). A chunk never has fewer rows than the minimum,
# because every chunk reads all weights of the head again.
MAX_LOGITS_PER_CHUNK_CUDA, MAX_LOGITS_PER_CHUNK_CPU, MIN_ROWS_PER_CHUNK = 1 << 26, 1 << 22, 256
REDUCE_BUCKET_SIZE = 50_000_000
"""Gradients that ZeRO reduces in one message; stage 3 keeps a buffer of this size permanently."""


def logits_chunk_rows(columns: int, samples: int, *, on_gpu: bool) -> int:
    """Rows of each sample of a micro-batch whose logits exist at the same time.

    Args:
        columns: columns of the logits on this rank.
        samples: samples in the micro-batch.
        on_gpu: whether the logits are computed on a GPU.
    """
    # With the 50,304 columns of GPT-2 a GPU takes 1334 rows at a time, shared by the samples: 166
    # of each of 8. A CPU would take 83, so there the minimum of 256 applies.
    limit = MAX_LOGITS_PER_CHUNK_CUDA if on_gpu else MAX_LOGITS_PER_CHUNK_CPU
    return max(1, max(limit // columns, MIN_ROWS_PER_CHUNK) // samples)


def reduces_every_micro_batch(optim: OptimConfig, *, pipeline_size: int) -> bool:
    """Return whether gradients are reduced and partitioned in every backward pass.

    No rank holds them whole then, at the price of one reduction per micro-batch. True from ZeRO 2
    on, except with a pipeline, whose stages reach their gradients at different times, or with the
    optimizer in host memory; gradients are then reduced once per step.
    """
    return optim.zero_stage >= 2 and pipeline_size == 1 and optim.offload == "none"


def rotary_dim(model: ResolvedModel) -> int:
    """Number of channels of a head that rotary embedding rotates."""
    return int(model.head_dim * model.partial_rotary_factor)


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """Rows of the embedding: the vocabulary rounded up to equal shares for `tensor` ranks."""
    multiple = math.lcm(VOCAB_MULTIPLE, tensor)
    return math.ceil(vocab_size / multiple) * multiple


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """Number of ranks that hold different samples."""
    return world_size // (parallel.tensor * parallel.pipeline * parallel.context)


def accumulation_steps(train: TrainConfig, data_parallel_size: int) -> int:
    """Micro-batches of one data parallel rank in one optimizer step."""
    return train.global_batch // (train.micro_batch * data_parallel_size)


def tokens_per_step(recipe: Recipe) -> int:
    """Targets in one optimizer step; each packed document after the first has one less."""
    return recipe.train.global_batch * recipe.data.seq_length


def num_parameters(model: ResolvedModel, vocab_size: int) -> int:
    """Number of weights of the whole model.

    Args:
        model: a resolved model section.
        vocab_size: rows of the embedding; the padded vocabulary counts what is stored.
    """
    d = model.hidden
    embedding = vocab_size * d
    head = 0 if model.tie_embeddings else vocab_size * d
    positions = (
        model.position_table_rows * d if model.position_embedding == "learned_absolute" else 0
    )
    query_init = num_query_start_parameters(model)
    layers = model.layers * num_layer_parameters(model)
    return embedding + positions + query_init + layers + _norm_parameters(model, d) + head


def num_layer_parameters(model: ResolvedModel) -> int:
    """Number of weights of one layer, two-stream or not: both streams share them."""
    d, f = model.hidden, model.ffn_hidden
    queries = model.heads * model.head_dim
    keys_values = 2 * model.kv_heads * model.head_dim
    up = 2 * f if model.activation == "swiglu" else f
    matrices = d * (queries + keys_values) + queries * d + d * up + f * d
    biases = model.attention_bias * (queries + keys_values) + model.attention_output_bias * d
    biases += model.mlp_bias * (up + d)
    head_norms = {
        "none": 0,
        "head": 2 * _norm_parameters(model, model.head_dim),
        # One weight per query and per key channel: values have no norm, hence the half. This norm
        # is always an RMSNorm (`check_qk_norm_type`), so there are no biases to count.
        "projection": queries + keys_values // 2,
    }
    return matrices + biases + 2 * _norm_parameters(model, d) + head_norms[model.qk_norm]


def num_query_start_parameters(model: ResolvedModel) -> int:
    """Number of weights that initialize query rows; an AR stack has no gaps, so no gap table."""
    count = 0
    if "anchor" in model.query and model.two_stream_layers > 0:
        count += (model.max_anchor_gap + 1) * model.hidden
    if "prefix" in model.query:
        count += model.position_table_rows * model.prefix_width + model.hidden
    if model.query == "learned":
        count += model.hidden
    return count


def _norm_parameters(model: ModelConfig, width: int) -> int:
    return 2 * width if model.norm == "layernorm" else width
