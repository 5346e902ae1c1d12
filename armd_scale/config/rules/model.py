"""What the network's sizes and parts must hold among themselves."""

from armd_scale.config import derived as derive
from armd_scale.config.messages import raise_rule_error
from armd_scale.config.schema import Recipe


def check_kv_heads_divide(recipe: Recipe) -> None:
    """Every key/value head serves the same number of query heads."""
    kv_heads = derive.kv_heads(recipe.model)
    if recipe.model.heads % kv_heads:
        must = f"be a multiple of model.kv_heads ({kv_heads})"
        raise_rule_error(
            "model.heads", recipe.model.heads, requirement=must, hint="change one of them"
        )


def check_head_dim(recipe: Recipe) -> None:
    """The width of a head is given or follows from the residual stream."""
    model = recipe.model
    if model.head_dim is None and model.hidden % model.heads:
        must = f"be a multiple of model.heads ({model.heads})"
        raise_rule_error(
            "model.hidden", model.hidden, requirement=must, hint="change one or give model.head_dim"
        )


def check_rotary(recipe: Recipe) -> None:
    """Rotary embedding turns channels of a head two by two, all of them or the first ones."""
    model = recipe.model
    if model.position_embedding != "rope":
        for key, default in (("rope_scaling", None), ("partial_rotary_factor", 1.0)):
            if getattr(model, key) != default:
                must = f"be rotary when model.{key} is given"
                raise_rule_error(
                    "model.position_embedding",
                    model.position_embedding,
                    requirement=must,
                    hint="change one of them",
                )
        return
    width = derive.head_dim(model)
    if not 0 < model.partial_rotary_factor <= 1:
        key, value, must = (
            "model.partial_rotary_factor",
            model.partial_rotary_factor,
            "lie above 0, at most 1",
        )
        raise_rule_error(key, value, requirement=must, hint="leave it out to turn whole heads")
    if model.partial_rotary_factor == 1 and width % 2:
        must = "be even with rotary positions"
        raise_rule_error("model.head_dim", width, requirement=must, hint="change it or model.heads")
    turned = derive.rotary_dim(model)
    if turned == 0 or turned % 2:
        must = f"turn an even number of a head's {width} channels"
        raise_rule_error(
            "model.partial_rotary_factor",
            model.partial_rotary_factor,
            requirement=must,
            hint="change it",
        )


def check_rope_scaling(recipe: Recipe) -> None:
    """Rotary scaling has a factor that stretches, and two bounds unless it stretches all."""
    scaling = recipe.model.rope_scaling
    if scaling is None:
        return
    if scaling.factor < 1:
        raise_rule_error(
            "model.rope_scaling.factor",
            scaling.factor,
            requirement="be at least 1",
            hint="raise it",
        )
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    bounds = {
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    is_linear = scaling.rope_type == "linear"
    for name, value in bounds.items():
        if (value is None) != is_linear:
            must = f"{'be null' if is_linear else 'be given'} for kind {scaling.rope_type}"
            advice = "leave it out" if is_linear else "copy it from the model's configuration"
            raise_rule_error(f"model.rope_scaling.{name}", value, requirement=must, hint=advice)
    if low is not None and high is not None and not 0 < low < high:
        must = f"lie between 0 and high_freq_factor ({high})"
        raise_rule_error(
            "model.rope_scaling.low_freq_factor", low, requirement=must, hint="lower it"
        )
    if original is not None and original < 1:
        key = "model.rope_scaling.original_max_position_embeddings"
        raise_rule_error(key, original, requirement="be at least 1", hint="raise it")


def check_two_stream_layers(recipe: Recipe) -> None:
    """Two-stream layers are some of the layers."""
    layers, count = recipe.model.layers, derive.two_stream_layers(recipe.model)
    if not 0 <= count <= layers:
        must = f"lie between 0 and model.layers ({layers})"
        raise_rule_error(
            "model.two_stream_layers", count, requirement=must, hint="leave it out for half of them"
        )


def check_ar_model_query_init(recipe: Recipe) -> None:
    """Without two-stream layers the only way in for a token is the start of a query row."""
    model = recipe.model
    if derive.two_stream_layers(model) == 0 and model.query != "anchor":
        must = "be anchor when model.two_stream_layers is 0"
        raise_rule_error("model.query", model.query, requirement=must, hint="change one of them")


def check_max_positions(recipe: Recipe) -> None:
    """Tables of positions have a row for every token of a sample, the given one included."""
    model, needed = recipe.model, recipe.data.seq_length + 1
    if derive.has_position_table(model) and derive.max_positions(recipe) < needed:
        must = f"be at least data.seq_length + 1 ({needed})"
        advice = "raise it or shorten the samples"
        raise_rule_error("model.max_positions", model.max_positions, requirement=must, hint=advice)


def check_qk_norm_type(recipe: Recipe) -> None:
    """The norm over all heads of a projection is an RMSNorm."""
    model = recipe.model
    if model.qk_norm == "projection" and model.norm != "rmsnorm":
        must, advice = "be rmsnorm when model.qk_norm is projection", "change one of them"
        raise_rule_error("model.norm", model.norm, requirement=must, hint=advice)


def check_dropout(recipe: Recipe) -> None:
    """Dropout is a probability, and cannot drop everything."""
    rate = recipe.model.dropout
    if not 0 <= rate < 1:
        raise_rule_error(
            "model.dropout", rate, requirement="be at least 0 and below 1", hint="try 0.1"
        )


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
