"""Bytes that forward passes keep for the backward passes to come.

What operations save on CUDA: products, norms and the gated activation their inputs, attention its
output and log-sums as well, the head the gradients that it makes ahead.
"""

from armd_scale.config import derived as derive
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe
from armd_scale.parallel.pipeline.partition import PipelineStage
from armd_scale.plan.compute import LayerRows, layer_rows

FP32 = 4


def bytes_per_value(recipe: ResolvedRecipe) -> int:
    """Bytes of a weight, gradient or activation in forward and backward."""
    return 2 if recipe.train.precision == "bf16" else FP32


def chunk_activations(recipe: ResolvedRecipe, chunk: PipelineStage) -> float:
    """Bytes that a micro-batch leaves in a chunk until its backward pass, both streams running."""
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
    """Bytes that one layer keeps of a micro-batch.

    Args:
        recipe: what trains.
        rows: of the layer.
        recompute: `train.recompute`, or another setting instead.
    """
    recompute = recompute or recipe.train.recompute
    model, tensor = recipe.model, recipe.parallel.tensor
    shared = tensor if recipe.parallel.sequence else 1
    targets = recipe.data.seq_length * recipe.train.micro_batch
    stream = model.hidden / shared
    values = rows.entering * stream
    if recompute != "full":
        # Inputs of attention, of the MLP's norm and of the MLP; then what is inside the MLP.
        values += rows.entering * (model.hidden if recompute == "none" else stream)
        values += rows.attending * (2 * stream + _mlp_values(model) / tensor)
    kept = targets * values * bytes_per_value(recipe)
    return kept + (_attention_activations(recipe, rows) if recompute == "none" else 0)


def _mlp_values(model: ResolvedModel) -> int:
    """Values of a row: into the activation, which are twice as many where it is gated, and out."""
    return model.ffn_hidden * (3 if model.activation == "swiglu" else 2)


def _attention_activations(recipe: ResolvedRecipe, rows: LayerRows) -> float:
    """Queries, keys, values and output; the fold of two streams into heads is undone by a copy."""
    model = recipe.model
    width, kv_width = (heads * model.head_dim for heads in (model.heads, model.kv_heads))
    has_norm = model.qk_norm != "none"
    copies = 2 + has_norm + (rows.attending > 1)
    turned = kv_width if model.position_embedding == "rope" or has_norm else 0
    values = rows.attending * copies * width + 2 * kv_width + turned
    log_sums = FP32 * rows.attending * model.heads
    targets = recipe.data.seq_length * recipe.train.micro_batch
    return targets * (values * bytes_per_value(recipe) + log_sums) / recipe.parallel.tensor


def _prefix_activations(recipe: ResolvedRecipe) -> int:
    """Which position sees which, and with what weight: two tables of all pairs."""
    length, batch = recipe.data.seq_length, recipe.train.micro_batch
    return batch * length * (2 * length + 2 * recipe.model.hidden) * bytes_per_value(recipe)


def _head_activations(recipe: ResolvedRecipe) -> float:
    """The norm's input, and what the loss's gradient by rows and weights takes."""
    model, targets = recipe.model, recipe.data.seq_length * recipe.train.micro_batch
    shared = recipe.parallel.tensor if recipe.parallel.sequence else 1
    values = targets * model.hidden * (1 + 1 / shared) + _columns(recipe) * model.hidden
    return values * bytes_per_value(recipe)


def _columns(recipe: ResolvedRecipe) -> int:
    """Columns of the logits on a rank."""
    tensor = recipe.parallel.tensor
    return derive.padded_vocab_size(recipe.model.vocab_size, tensor) // tensor


def working_bytes(recipe: ResolvedRecipe, chunk: PipelineStage) -> float:
    """What a pass needs besides: a recomputed layer, or the logits at work.

    Of half width, these are summed in a float32 copy, and so is the gradient by the head's weights.
    """
    model, recompute = recipe.model, recipe.train.recompute
    rows = layer_rows(model, one_stream=False)[chunk.layers[0]]
    again = 0.0
    if recompute == "full":
        again = layer_activations(recipe, rows, recompute="none")
    elif recompute == "selective":
        again = _attention_activations(recipe, rows)
    if not chunk.is_last:
        return again
    columns, targets = _columns(recipe), recipe.data.seq_length * recipe.train.micro_batch
    width = bytes_per_value(recipe)
    copy = 0 if width == FP32 else FP32
    samples = recipe.train.micro_batch
    rows_at_once = samples * derive.logits_chunk_rows(columns, samples, on_gpu=True)
    logits = columns * min(targets, rows_at_once)
    return max(again, float((logits + columns * model.hidden) * (width + copy)))
