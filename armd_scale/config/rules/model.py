"""Rules of the network's sizes and parts."""

from armd_scale.config.messages import raise_rule_error
from armd_scale.config.resolve import (
    resolve_head_dim,
    resolve_kv_heads,
    resolve_max_positions,
    resolve_two_stream_layers,
)
from armd_scale.config.schema import Recipe, RopeScaling

# The keys that bound the ramp between scaled and unscaled wavelengths, lower bound first.
_SCALING_BOUNDS = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_slow", "beta_fast"),
}


def check_kv_heads_divide(recipe: Recipe) -> None:
    """Every key/value head serves the same number of query heads."""
    kv_heads = resolve_kv_heads(recipe.model)
    if recipe.model.heads % kv_heads:
        requirement = f"be a multiple of model.kv_heads = {kv_heads}"
        raise_rule_error("model.heads", recipe.model.heads, requirement=requirement)


def check_head_dim(recipe: Recipe) -> None:
    """The width of a head is set or follows from the width of the residual stream."""
    model = recipe.model
    if model.head_dim is None and model.hidden % model.heads:
        requirement = f"be a multiple of model.heads = {model.heads}"
        hint = "or set model.head_dim"
        raise_rule_error("model.hidden", model.hidden, requirement=requirement, hint=hint)


def check_rotary(recipe: Recipe) -> None:
    """Rotary embedding rotates channels of a head in pairs, all of them or the first ones."""
    model = recipe.model
    if model.position_embedding != "rope":
        for key, default in (("rope_scaling", None), ("partial_rotary_factor", 1.0)):
            if getattr(model, key) != default:
                value, requirement = model.position_embedding, f"be rope when model.{key} is set"
                raise_rule_error("model.position_embedding", value, requirement=requirement)
        return
    head_dim, fraction = resolve_head_dim(model), model.partial_rotary_factor
    if not 0 < fraction <= 1:
        raise_rule_error("model.partial_rotary_factor", fraction, requirement="be > 0 and <= 1")
    if fraction == 1 and head_dim % 2:
        requirement = "be even with rotary positions"
        raise_rule_error("model.head_dim", head_dim, requirement=requirement)
    # Rounded down as in transformers (GPT-NeoX, Phi-3), so that converted models rotate the same.
    num_rotated = int(head_dim * fraction)
    if num_rotated == 0 or num_rotated % 2:
        requirement = f"rotate an even number of a head's {head_dim} channels"
        raise_rule_error("model.partial_rotary_factor", fraction, requirement=requirement)


def check_rope_scaling(recipe: Recipe) -> None:
    """Scaling stretches wavelengths, and has the bounds of its type and no others."""
    scaling = recipe.model.rope_scaling
    if scaling is None:
        return
    if scaling.factor < 1:
        key = "model.rope_scaling.factor"
        raise_rule_error(key, scaling.factor, requirement="be >= 1")
    _check_scaling_keys(scaling)
    original = scaling.original_max_position_embeddings
    if original is not None and original < 1:
        key = "model.rope_scaling.original_max_position_embeddings"
        raise_rule_error(key, original, requirement="be >= 1")
    bounds = _SCALING_BOUNDS[scaling.rope_type]
    if bounds:
        low, high = (getattr(scaling, name) for name in bounds)
        # The ramp of llama3 divides by high - low, and that of YaRN takes the logarithm of both.
        if not 0 < low < high:
            requirement = f"be between 0 and {bounds[1]} = {high}"
            raise_rule_error(f"model.rope_scaling.{bounds[0]}", low, requirement=requirement)


def _check_scaling_keys(scaling: RopeScaling) -> None:
    bounds = _SCALING_BOUNDS[scaling.rope_type]
    required = {*bounds, "original_max_position_embeddings"} if bounds else set[str]()
    optional = dict.fromkeys(key for keys in _SCALING_BOUNDS.values() for key in keys)
    for name in (*optional, "original_max_position_embeddings"):
        value = getattr(scaling, name)
        if (value is not None) != (name in required):
            state = "be set" if name in required else "be null"
            hint = "copy it from the model's config.json" if name in required else ""
            raise_rule_error(
                f"model.rope_scaling.{name}",
                value,
                requirement=f"{state} for rope_type {scaling.rope_type}",
                hint=hint,
            )


def check_two_stream_layers(recipe: Recipe) -> None:
    """There are at most as many two-stream layers as layers."""
    layers, count = recipe.model.layers, resolve_two_stream_layers(recipe.model)
    if not 0 <= count <= layers:
        requirement = f"be between 0 and model.layers = {layers}"
        raise_rule_error("model.two_stream_layers", count, requirement=requirement)


def check_ar_model_query_init(recipe: Recipe) -> None:
    """With two_stream_layers=0 tokens enter only through the query initialization: the anchor."""
    model = recipe.model
    if resolve_two_stream_layers(model) == 0 and model.query != "anchor":
        requirement = "be anchor when model.two_stream_layers is 0"
        raise_rule_error("model.query", model.query, requirement=requirement)


def check_max_positions(recipe: Recipe) -> None:
    """Every token of a sample has a position, the given one included.

    With a position table there is no row for others. Rotary positions have none, but a model that
    says how far it goes is not trained further than evaluation would then accept.
    """
    model, needed = recipe.model, recipe.data.seq_length + 1
    if resolve_max_positions(recipe) < needed:
        requirement = f"be >= data.seq_length + 1 = {needed}"
        raise_rule_error("model.max_positions", model.max_positions, requirement=requirement)


def check_qk_norm_type(recipe: Recipe) -> None:
    """The norm over all heads of a projection is an RMSNorm."""
    model = recipe.model
    if model.qk_norm == "projection" and model.norm != "rmsnorm":
        requirement = "be rmsnorm when model.qk_norm is projection"
        raise_rule_error("model.norm", model.norm, requirement=requirement)


def check_dropout(recipe: Recipe) -> None:
    """Dropout is a probability, and cannot drop everything."""
    dropout = recipe.model.dropout
    # The channels that stay are divided by 1 - dropout.
    if not 0 <= dropout < 1:
        raise_rule_error("model.dropout", dropout, requirement="be >= 0 and < 1")


MODEL_RULES = (
    check_kv_heads_divide,
    check_head_dim,
    check_rotary,
    check_rope_scaling,
    check_two_stream_layers,
    check_ar_model_query_init,
    check_max_positions,
    check_qk_norm_type,
    check_dropout,
)
