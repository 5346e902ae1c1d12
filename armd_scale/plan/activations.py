"""Bytes of activations that forward passes keep for their backward passes.

What CUDA operators save: matrix products, norms and the gated activation save their inputs,
attention its output and log-sum-exp as well, and the LM head the gradients that it computes in
the forward pass.
"""

from armd_scale.config import derived
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe
from armd_scale.parallel.pipeline.partition import PipelineStage
from armd_scale.plan.compute import LayerRows, layer_rows

FP32 = 4
"""Bytes of a float32."""


def bytes_per_value(recipe: ResolvedRecipe) -> int:
    """Return the bytes of one weight, gradient or activation in forward and backward."""
    return 2 if recipe.train.precision == "bf16" else FP32


def chunk_activations(recipe: ResolvedRecipe, chunk: PipelineStage) -> float:
    """Return the bytes that one micro-batch of two-stream rows keeps in a chunk."""
    rows = layer_rows(recipe.model, one_stream=False)
    kept = sum(layer_activations(recipe, rows[layer]) for layer in chunk.layers)
    if chunk.is_first and "prefix" in recipe.model.query:
        kept += _prefix_activations(recipe)
    if chunk.is_last:
        kept += _head_activations(recipe)
    return kept


def layer_activations(
    recipe: ResolvedRecipe, rows: LayerRows, *, recompute: str | None = None
) -> float:
    """Return the bytes that one layer keeps of a micro-batch.

    Args:
        recipe: the recipe.
        rows: rows of the layer.
        recompute: `none`, `selective` or `full`; the recipe's `train.recompute` if None.
    """
    recompute = recompute or recipe.train.recompute
    model, tensor = recipe.model, recipe.parallel.tensor
    # Sequence parallelism splits norms and residuals over the tensor ranks too.
    sequence_shards = tensor if recipe.parallel.sequence else 1
    targets = recipe.data.seq_length * recipe.train.micro_batch
    stream = model.hidden / sequence_shards
    values = rows.entering * stream  # the layer's input, kept in every case
    if recompute != "full":
        # Inputs of attention, of the MLP's norm and of the MLP; then what is inside the MLP. With
        # `none` attention's input is kept gathered (all of the hidden size), not sharded.
        values += rows.entering * (model.hidden if recompute == "none" else stream)
        values += rows.attending * (2 * stream + _mlp_values(model) / tensor)
    kept = targets * values * bytes_per_value(recipe)
    return kept + (_attention_activations(recipe, rows) if recompute == "none" else 0)


def _mlp_values(model: ResolvedModel) -> int:
    """Values per row inside the MLP: input of the activation (twice if gated) and its output."""
    return model.ffn_hidden * (3 if model.activation == "swiglu" else 2)


def _attention_activations(recipe: ResolvedRecipe, rows: LayerRows) -> float:
    """Bytes of queries, keys, values, output and log-sum-exp of one layer."""
    model = recipe.model
    width, kv_width = (heads * model.head_dim for heads in (model.heads, model.kv_heads))
    has_norm = model.qk_norm != "none"
    # Queries and output, the input of the norm on heads, and, where two streams are folded into
    # the heads of one call, the copy that unfolds its output.
    copies = 2 + has_norm + (rows.attending > 1)
    # Rotary embedding and the norm on heads make a new tensor of the keys; values stay views.
    new_keys = kv_width if model.position_embedding == "rope" or has_norm else 0
    values = rows.attending * copies * width + 2 * kv_width + new_keys
    log_sum_exp = FP32 * rows.attending * model.heads
    targets = recipe.data.seq_length * recipe.train.micro_batch
    return targets * (values * bytes_per_value(recipe) + log_sum_exp) / recipe.parallel.tensor


def _prefix_activations(recipe: ResolvedRecipe) -> int:
    """Bytes of the prefix query: visibility and weight of every pair of positions."""
    length, batch = recipe.data.seq_length, recipe.train.micro_batch
    return batch * length * (2 * length + 2 * recipe.model.hidden) * bytes_per_value(recipe)


def _head_activations(recipe: ResolvedRecipe) -> float:
    """Bytes of the final norm's input, and of the loss's gradients of rows and head weights.

    The head computes both gradients in the forward pass, while a chunk of logits is alive, so
    they take the place of the logits between forward and backward.
    """
    model, targets = recipe.model, recipe.data.seq_length * recipe.train.micro_batch
    sequence_shards = recipe.parallel.tensor if recipe.parallel.sequence else 1
    values = targets * model.hidden * (1 + 1 / sequence_shards)
    values += _logits_columns(recipe) * model.hidden
    return values * bytes_per_value(recipe)


def _logits_columns(recipe: ResolvedRecipe) -> int:
    """Columns of the logits on one tensor-parallel rank."""
    tensor = recipe.parallel.tensor
    return derived.padded_vocab_size(recipe.model.vocab_size, tensor) // tensor


def workspace_bytes(recipe: ResolvedRecipe, chunk: PipelineStage) -> float:
    """Return the peak bytes of temporaries of one pass: a recomputed layer or a chunk of logits."""
    model, recompute = recipe.model, recipe.train.recompute
    rows = layer_rows(model, one_stream=False)[chunk.layers[0]]
    recomputed = 0.0
    if recompute == "full":
        recomputed = layer_activations(recipe, rows, recompute="none")
    elif recompute == "selective":
        recomputed = _attention_activations(recipe, rows)
    if not chunk.is_last:
        return recomputed
    columns, targets = _logits_columns(recipe), recipe.data.seq_length * recipe.train.micro_batch
    width = bytes_per_value(recipe)
    # In bf16 the softmax runs on a float32 copy of the logits, and the gradient of the head's
    # weights is summed over chunks in float32.
    fp32_copy = 0 if width == FP32 else FP32
    samples = recipe.train.micro_batch
    chunk_rows = samples * derived.logits_chunk_rows(columns, samples, on_gpu=True)
    logits = columns * min(targets, chunk_rows)
    # Layers and head never run at the same time.
    return max(recomputed, float((logits + columns * model.hidden) * (width + fp32_copy)))
