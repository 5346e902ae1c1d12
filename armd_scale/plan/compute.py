"""FLOPs of a training step: those that the model needs, and those that the hardware runs.

Model FLOPs are the matrix products of forward and backward pass, with causal attention counted for
the visible half of the keys; MFU is defined on them. Hardware FLOPs (HFU) add what runs twice:
recomputed layers or attention, and the attention scores, which the backward pass of every flash
kernel recomputes. Both count the rows that really run: a left-to-right step under `query: anchor`
runs one stream.
"""

from dataclasses import dataclass, replace
from functools import cache

from armd_scale.config import flops
from armd_scale.config.derived import padded_vocab_size
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe
from armd_scale.order.policies import OrderPolicy

CAUSAL = 0.5
"""Fraction of the keys that a row of a causal kernel visits (a dense kernel: 1.0)."""
FLASH_BACKWARD = 5 / 2
"""Matrix products of a flash kernel's backward pass over those of its forward pass: five (scores
again, and the gradients of values, scores, queries and keys) over two."""
SAMPLED_STEPS = 1000
"""Steps of a run whose orders are looked at, evenly spaced, to count left-to-right steps."""


@dataclass(frozen=True)
class LayerRows:
    """Rows of a layer per target of the sample (1 or 2 streams)."""

    entering: int
    """Content and query rows of its input."""
    attending: int
    """Rows that attend, run through the MLP and leave the layer."""


def layer_rows(model: ResolvedModel, *, one_stream: bool) -> tuple[LayerRows, ...]:
    """Return the rows of every layer; all layers project keys and values of one row per target."""
    num_two_stream = 0 if one_stream else model.two_stream_layers
    # The last two-stream layer reads both streams, but its content rows feed no later layer, so
    # only its query rows attend.
    return tuple(
        LayerRows(2 if layer < num_two_stream else 1, 2 if layer < num_two_stream - 1 else 1)
        for layer in range(model.layers)
    )


def can_run_one_stream(model: ResolvedModel, order: OrderPolicy) -> bool:
    """Return whether every batch of an order can skip the content stream.

    The same condition as `ArmdModel.can_skip_content_stream`, known before any batch exists.
    """
    left_to_right = model.query == "anchor" and order.is_left_to_right
    return model.two_stream_layers == 0 or left_to_right


def one_stream_share(recipe: ResolvedRecipe) -> float:
    """Return the fraction of the run's steps that run one stream (from SAMPLED_STEPS of them)."""
    return _one_stream_share(recipe.model, recipe.order, recipe.train.steps)


@cache
def _one_stream_share(model: ResolvedModel, order: OrderPolicy, num_steps: int) -> float:
    steps = range(0, num_steps, max(1, num_steps // SAMPLED_STEPS))
    return sum(can_run_one_stream(model, order.at_step(step)) for step in steps) / len(steps)


def model_flops_per_target(recipe: ResolvedRecipe, *, one_stream: bool) -> int:
    """Return the model FLOPs of one target, forward and backward."""
    model = replace(recipe.model, two_stream_layers=0) if one_stream else recipe.model
    return flops.model_flops_per_token(model, recipe.data.seq_length, recipe.model.vocab_size)


def hardware_flops_per_target(
    recipe: ResolvedRecipe, *, one_stream: bool, visited: float = CAUSAL
) -> float:
    """Return the hardware FLOPs of one target, forward and backward.

    Args:
        recipe: a resolved recipe.
        one_stream: whether the query stream runs alone.
        visited: fraction of the keys that attention kernels visit.
    """
    layers = layer_hardware_flops(recipe, one_stream=one_stream, visited=visited)
    return sum(layers) + embedding_and_head_flops(recipe)


def layer_hardware_flops(
    recipe: ResolvedRecipe, *, one_stream: bool, visited: float = CAUSAL
) -> tuple[float, ...]:
    """Return the hardware FLOPs of one target in every layer."""
    rows = layer_rows(recipe.model, one_stream=one_stream)
    by_kind = {kind: _layer_flops(recipe, kind, visited) for kind in set(rows)}  # at most 3 kinds
    return tuple(by_kind[kind] for kind in rows)


def _layer_flops(recipe: ResolvedRecipe, rows: LayerRows, visited: float) -> float:
    model, length = recipe.model, recipe.data.seq_length
    width = model.heads * model.head_dim
    row = flops.row_flops(model, length)
    attention = 4 * width * length * rows.attending * visited
    projections = row.keys_values + 4 * model.hidden * width * rows.attending
    # `row.output` counts attention over half of the keys, which `attention` counts as `visited`.
    matrices = row.keys_values + (row.output - 2 * width * length) * rows.attending
    recomputed = {"none": 0, "selective": projections + attention, "full": matrices + attention}
    return 3 * matrices + (1 + FLASH_BACKWARD) * attention + recomputed[recipe.train.recompute]


def embedding_and_head_flops(recipe: ResolvedRecipe) -> int:
    """Return the hardware FLOPs of one target before the first layer and after the last.

    The head multiplies with the padded vocabulary. The prefix query pools over all positions,
    with weight zero on hidden ones, so it runs twice the FLOPs that the model needs.
    """
    model, length = recipe.model, recipe.data.seq_length
    padded = padded_vocab_size(model.vocab_size, recipe.parallel.tensor)
    start = 3 * 2 * flops.query_start_flops(model, length)
    return start + 3 * flops.head_flops(model, padded)
