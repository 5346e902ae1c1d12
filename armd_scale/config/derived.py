"""Numbers that follow from a recipe: resolved defaults, sizes, weights, operations."""

import math
from dataclasses import dataclass

from armd_scale.config.schema import ModelConfig, OptimConfig, ParallelConfig, Recipe, TrainConfig

# Matrix units like multiples of this. As a multiple of the usual tensor parallel sizes it also
# gives one padded size, and so one shape in checkpoints, under all of them.
VOCAB_MULTIPLE = 64
# So many logits of a rank exist at a time: enough for a GPU's matrix units, or, on CPU, few enough
# to stay in its caches; but never of fewer rows than LEAST_ROWS, because each chunk reads all
# weights of the head.
MAX_LOGITS_PER_CHUNK_CUDA, MAX_LOGITS_PER_CHUNK_CPU, MIN_ROWS_PER_CHUNK = 1 << 26, 1 << 22, 256


def logits_chunk_rows(columns: int, samples: int, *, on_gpu: bool) -> int:
    """Rows of each of a micro-batch's samples whose logits exist together.

    Args:
        columns: of the logits on this rank.
        samples: of the micro-batch.
        on_gpu: where they are computed.
    """
    limit = MAX_LOGITS_PER_CHUNK_CUDA if on_gpu else MAX_LOGITS_PER_CHUNK_CPU
    return max(1, max(limit // columns, MIN_ROWS_PER_CHUNK) // samples)


REDUCE_BUCKET_SIZE = 50_000_000
"""Gradients that ZeRO reduces together; stage 3 keeps a buffer for them for good."""


def reduces_every_micro_batch(recipe: Recipe) -> bool:
    """Whether each backward pass shares its gradients out, so that no process holds them whole.

    From ZeRO 2 on; stages of a pipeline reach their gradients at different times and wait.
    """
    optim = recipe.optim
    return optim.zero_stage >= 2 and recipe.parallel.pipeline == 1 and optim.offload == "none"


def head_dim(model: ModelConfig) -> int:
    """Width of an attention head."""
    return model.hidden // model.heads if model.head_dim is None else model.head_dim


def kv_heads(model: ModelConfig) -> int:
    """Number of key/value heads."""
    return model.heads if model.kv_heads is None else model.kv_heads


def rotary_dim(model: ModelConfig) -> int:
    """Channels of a head that rotary embedding turns."""
    return int(head_dim(model) * model.partial_rotary_factor)


def two_stream_layers(model: ModelConfig) -> int:
    """Number of lower layers that run both streams; half of them unless said otherwise."""
    return model.layers // 2 if model.two_stream_layers is None else model.two_stream_layers


def max_positions(recipe: Recipe) -> int:
    """Longest text in tokens, and rows of position tables."""
    given = recipe.model.max_positions
    return recipe.data.seq_length + 1 if given is None else given


def has_position_table(model: ModelConfig) -> bool:
    """Whether there are positions that the network has no row for; rotary ones have no end."""
    return model.position_embedding == "learned_absolute" or "prefix" in model.query


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """Rows of the embedding: enough for the vocabulary, in equal shares for `tensor` processes."""
    multiple = math.lcm(VOCAB_MULTIPLE, tensor)
    return math.ceil(vocab_size / multiple) * multiple


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """Processes that hold different samples."""
    return world_size // (parallel.tensor * parallel.pipeline * parallel.context)


def accumulation_steps(train: TrainConfig, data_parallel_size: int) -> int:
    """Micro-batches of one data parallel process in one optimizer step."""
    return train.global_batch // (train.micro_batch * data_parallel_size)


def tokens_per_step(recipe: Recipe) -> int:
    """Targets in one optimizer step; packed documents have up to one less each."""
    return recipe.train.global_batch * recipe.data.seq_length


def decay_steps(optim: OptimConfig, train: TrainConfig) -> int:
    """Length of the final decay of the `wsd` schedule, in steps."""
    return max(1, train.steps // 10) if optim.decay_steps is None else optim.decay_steps


def num_parameters(model: ModelConfig, vocab_size: int, *, max_positions: int | None = None) -> int:
    """Weights of the whole model; pass the padded vocabulary to count what is stored.

    Args:
        model: the model.
        vocab_size: rows of the embedding.
        max_positions: rows of position tables, where the model leaves them open.
    """
    rows = model.max_positions if max_positions is None else max_positions
    d = model.hidden
    embedding = vocab_size * d
    head = 0 if model.tie_embeddings else vocab_size * d
    positions = _position_rows(rows) * d if model.position_embedding == "learned_absolute" else 0
    query_start = num_query_init_parameters(model, rows)
    layers = model.layers * layer_parameter_count(model)
    return embedding + positions + query_start + layers + _norm(model, d) + head


def layer_parameter_count(model: ModelConfig) -> int:
    """Weights of one layer, two-stream or not: both streams share them."""
    d, f = model.hidden, model.ffn_hidden
    queries, keys_values = model.heads * head_dim(model), 2 * kv_heads(model) * head_dim(model)
    up = 2 * f if model.activation == "swiglu" else f
    matrices = d * (queries + keys_values) + queries * d + d * up + f * d
    biases = model.attention_bias * (queries + keys_values) + model.attention_output_bias * d
    biases += model.mlp_bias * (up + d)
    head_norms = {
        "none": 0,
        "head": 2 * _norm(model, head_dim(model)),
        "projection": queries + keys_values // 2,
    }
    return matrices + biases + 2 * _norm(model, d) + head_norms[model.qk_norm]


def num_query_init_parameters(model: ModelConfig, max_positions: int | None) -> int:
    """Weights that start the query stream; a plain auto-regressive stack never sees a gap."""
    count = 0
    if "anchor" in model.query and two_stream_layers(model) > 0:
        count += (model.max_anchor_gap + 1) * model.hidden
    if "prefix" in model.query:
        count += _position_rows(max_positions) * model.prefix_width + model.hidden
    if model.query == "learned":
        count += model.hidden
    return count


def _position_rows(rows: int | None) -> int:
    assert rows is not None, "position tables have as many rows as max_positions"
    return rows


def _norm(model: ModelConfig, width: int) -> int:
    return 2 * width if model.norm == "layernorm" else width


@dataclass(frozen=True, kw_only=True)
class LayerRowFlops:
    """Forward operations of one layer on one row, multiply and add counted apart."""

    keys_values: int
    """Key and value projections."""
    output: int
    """Query projection, scores, weighted values, output projection and MLP."""


def row_flops(model: ModelConfig, seq_length: int) -> LayerRowFlops:
    """Matrix products of one row; a causal row sees half of the sequence on average."""
    d, width = model.hidden, model.heads * head_dim(model)
    matrices = 3 if model.activation == "swiglu" else 2
    projections = 2 * (2 * d * width)
    mlp = matrices * (2 * d * model.ffn_hidden)
    attention = 2 * (2 * width * seq_length) // 2
    keys_values = 2 * (2 * d * kv_heads(model) * head_dim(model))
    return LayerRowFlops(keys_values=keys_values, output=projections + mlp + attention)


def layer_flops(model: ModelConfig, seq_length: int) -> tuple[int, ...]:
    """Matrix products of the forward pass per target, layer by layer.

    Every layer needs one row's keys and values: the content row's below, the query row's above.
    Every layer computes the query row's output. Content rows need theirs only to feed the next
    two-stream layer, so not in the last one.
    """
    row = row_flops(model, seq_length)
    content_outputs = max(0, two_stream_layers(model) - 1)
    return tuple(
        row.keys_values + row.output * (2 if layer < content_outputs else 1)
        for layer in range(model.layers)
    )


def head_flops(model: ModelConfig, vocab_size: int) -> int:
    """Matrix product of the head per target; it reads query rows alone."""
    return 2 * model.hidden * vocab_size


def query_start_flops(model: ModelConfig, seq_length: int) -> int:
    """Of the prefix query per target: weights <PE_p, PE_j> and sum, over half of the sequence."""
    pooled = "prefix" in model.query
    return seq_length * (model.prefix_width + model.hidden) if pooled else 0


def forward_flops_per_token(model: ModelConfig, seq_length: int, vocab_size: int) -> int:
    """Matrix products of the forward pass per target."""
    start, head = query_start_flops(model, seq_length), head_flops(model, vocab_size)
    return start + sum(layer_flops(model, seq_length)) + head


def model_flops_per_token(model: ModelConfig, seq_length: int, vocab_size: int) -> int:
    """Operations of forward and backward pass per target, without recomputation.

    The backward pass costs twice the forward pass: one product for the inputs, one for the weights.
    """
    return 3 * forward_flops_per_token(model, seq_length, vocab_size)
