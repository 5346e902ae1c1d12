"""Operations of a training step: those that the model needs, and those that the hardware runs.

Model FLOPs are the matrix products of forward and backward pass, causal attention counted for the
half of the keys that is visible: what MFU is a share of. Hardware FLOPs add what is computed twice:
layers or attention that the backward pass recomputes, and the scores, which every flash
attention kernel recomputes. Both follow the rows that really run: a left-to-right step under
`anchor` runs one stream.
"""

from dataclasses import dataclass, replace
from functools import cache

from armd_scale.config import flops
from armd_scale.config.derived import padded_vocab_size
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe
from armd_scale.order.policies import (
    OrderPolicy,
)

CAUSAL = 0.5
"""Share of the keys that a row of a causal kernel visits; a dense kernel visits all, 1.0."""
FLASH_BACKWARD = 5 / 2
"""Products of a flash kernel's backward pass (scores again, and four gradients) to its forward's
two."""
SAMPLED_STEPS = 1000


@dataclass(frozen=True)
class LayerRows:
    """Rows of a layer, in units of the sample's targets."""

    entering: int
    """Content and query rows that come in."""
    attending: int
    """Rows that attend, pass the MLP and go out."""


def layer_rows(model: ResolvedModel, *, one_stream: bool) -> tuple[LayerRows, ...]:
    """The rows of every layer; all layers project keys and values of one row per target."""
    both = 0 if one_stream else model.two_stream_layers
    return tuple(
        LayerRows(2 if layer < both else 1, 2 if layer < both - 1 else 1)
        for layer in range(model.layers)
    )


def can_run_one_stream(model: ResolvedModel, order: OrderPolicy) -> bool:
    """Whether every batch of an order needs one stream: see `ArmdModel.runs_one_stream`."""
    left_to_right = model.query == "anchor" and order.is_left_to_right
    return model.two_stream_layers == 0 or left_to_right


def one_stream_share(recipe: ResolvedRecipe) -> float:
    """Share of the run's steps that need one stream, from steps at even distances."""
    return _one_stream_share(recipe.model, recipe.order, recipe.train.steps)


@cache
def _one_stream_share(model: ResolvedModel, order: OrderPolicy, num_steps: int) -> float:
    steps = range(0, num_steps, max(1, num_steps // SAMPLED_STEPS))
    return sum(can_run_one_stream(model, order.at_step(step)) for step in steps) / len(steps)


def model_flops_per_target(recipe: ResolvedRecipe, *, one_stream: bool) -> int:
    """Model FLOPs of one target, forward and backward."""
    model = replace(recipe.model, two_stream_layers=0) if one_stream else recipe.model
    return flops.model_flops_per_token(model, recipe.data.seq_length, recipe.model.vocab_size)


def hardware_flops_per_target(
    recipe: ResolvedRecipe, *, one_stream: bool, visited: float = CAUSAL
) -> float:
    """Hardware FLOPs of one target, forward and backward.

    Args:
        recipe: a resolved recipe.
        one_stream: whether the query stream runs alone.
        visited: share of the keys that attention kernels visit.
    """
    layers = layer_hardware_flops(recipe, one_stream=one_stream, visited=visited)
    return sum(layers) + embedding_and_head_flops(recipe)


def layer_hardware_flops(
    recipe: ResolvedRecipe, *, one_stream: bool, visited: float = CAUSAL
) -> tuple[float, ...]:
    """Hardware FLOPs of one target in every layer."""
    rows = layer_rows(recipe.model, one_stream=one_stream)
    cost = {kind: _layer_flops(recipe, kind, visited) for kind in set(rows)}
    return tuple(cost[kind] for kind in rows)


def _layer_flops(recipe: ResolvedRecipe, rows: LayerRows, visited: float) -> float:
    model, length = recipe.model, recipe.data.seq_length
    width = model.heads * model.head_dim
    row = flops.row_flops(model, length)
    attention = 4 * width * length * rows.attending * visited
    projections = row.keys_values + 4 * model.hidden * width * rows.attending
    matrices = row.keys_values + (row.output - 2 * width * length) * rows.attending
    again = {"none": 0, "selective": projections + attention, "full": matrices + attention}
    return 3 * matrices + (1 + FLASH_BACKWARD) * attention + again[recipe.train.recompute]


def embedding_and_head_flops(recipe: ResolvedRecipe) -> int:
    """Hardware FLOPs of one target before the first layer and after the last.

    The head multiplies with the padded vocabulary; the prefix query pools over all positions,
    hidden ones with weight zero.
    """
    model, length = recipe.model, recipe.data.seq_length
    padded = padded_vocab_size(model.vocab_size, recipe.parallel.tensor)
    start = 3 * 2 * flops.query_init_flops(model, length)
    return start + 3 * flops.head_flops(model, padded)
