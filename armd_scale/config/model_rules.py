"""What the network's sizes and parts must hold among themselves."""

from armd_scale.config import derive
from armd_scale.config.schema import Recipe
from armd_scale.config.wording import refuse


def heads_share_keys_and_values(recipe: Recipe) -> None:
    """Every key/value head serves the same number of query heads."""
    kv_heads = derive.kv_heads(recipe.model)
    if recipe.model.heads % kv_heads:
        must = f"be a multiple of model.kv_heads ({kv_heads})"
        refuse("model.heads", recipe.model.heads, must=must, advice="change one of them")


def heads_share_hidden(recipe: Recipe) -> None:
    """The width of a head is given or follows from the residual stream."""
    model = recipe.model
    if model.head_dim is None and model.hidden % model.heads:
        must = f"be a multiple of model.heads ({model.heads})"
        refuse("model.hidden", model.hidden, must=must, advice="change one or give model.head_dim")


def rotary_turns_pairs(recipe: Recipe) -> None:
    """Rotary embedding turns channels of a head two by two, all of them or the first ones."""
    model = recipe.model
    if model.positions != "rotary":
        for key, default in (("rope_scaling", None), ("rotary_fraction", 1.0)):
            if getattr(model, key) != default:
                must = f"be rotary when model.{key} is given"
                refuse("model.positions", model.positions, must=must, advice="change one of them")
        return
    width = derive.head_dim(model)
    if not 0 < model.rotary_fraction <= 1:
        key, value, must = "model.rotary_fraction", model.rotary_fraction, "lie above 0, at most 1"
        refuse(key, value, must=must, advice="leave it out to turn whole heads")
    if model.rotary_fraction == 1 and width % 2:
        must = "be even with rotary positions"
        refuse("model.head_dim", width, must=must, advice="change it or model.heads")
    turned = derive.rotary_width(model)
    if turned == 0 or turned % 2:
        must = f"turn an even number of a head's {width} channels"
        refuse("model.rotary_fraction", model.rotary_fraction, must=must, advice="change it")


def rope_scaling_stretches(recipe: Recipe) -> None:
    """Rotary scaling has a factor that stretches, and two bounds unless it stretches all."""
    scaling = recipe.model.rope_scaling
    if scaling is None:
        return
    if scaling.factor < 1:
        refuse("model.rope_scaling.factor", scaling.factor, must="be at least 1", advice="raise it")
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    original = scaling.original_max_positions
    bounds = {
        "low_frequency_factor": low,
        "high_frequency_factor": high,
        "original_max_positions": original,
    }
    is_linear = scaling.kind == "linear"
    for name, value in bounds.items():
        if (value is None) != is_linear:
            must = f"{'be null' if is_linear else 'be given'} for kind {scaling.kind}"
            advice = "leave it out" if is_linear else "copy it from the model's configuration"
            refuse(f"model.rope_scaling.{name}", value, must=must, advice=advice)
    if low is not None and high is not None and not 0 < low < high:
        must = f"lie between 0 and high_frequency_factor ({high})"
        refuse("model.rope_scaling.low_frequency_factor", low, must=must, advice="lower it")
    if original is not None and original < 1:
        key = "model.rope_scaling.original_max_positions"
        refuse(key, original, must="be at least 1", advice="raise it")


def two_stream_layers_exist(recipe: Recipe) -> None:
    """Two-stream layers are some of the layers."""
    layers, count = recipe.model.layers, derive.two_stream_layers(recipe.model)
    if not 0 <= count <= layers:
        must = f"lie between 0 and model.layers ({layers})"
        refuse("model.two_stream_layers", count, must=must, advice="leave it out for half of them")


def plain_stack_starts_from_tokens(recipe: Recipe) -> None:
    """Without two-stream layers the only way in for a token is the start of a query row."""
    model = recipe.model
    if derive.two_stream_layers(model) == 0 and model.query != "anchor":
        must = "be anchor when model.two_stream_layers is 0"
        refuse("model.query", model.query, must=must, advice="change one of them")


def position_tables_reach(recipe: Recipe) -> None:
    """Tables of positions have a row for every token of a sample, the given one included."""
    model, needed = recipe.model, recipe.data.seq_length + 1
    if derive.has_position_table(model) and derive.max_positions(recipe) < needed:
        must = f"be at least data.seq_length + 1 ({needed})"
        advice = "raise it or shorten the samples"
        refuse("model.max_positions", model.max_positions, must=must, advice=advice)


def projections_have_root_mean_squares(recipe: Recipe) -> None:
    """The norm over all heads of a projection is an RMSNorm."""
    model = recipe.model
    if model.qk_norm == "projection" and model.norm != "rmsnorm":
        must, advice = "be rmsnorm when model.qk_norm is projection", "change one of them"
        refuse("model.norm", model.norm, must=must, advice=advice)


def dropout_leaves_some(recipe: Recipe) -> None:
    """Dropout is a probability, and cannot drop everything."""
    rate = recipe.model.dropout
    if not 0 <= rate < 1:
        refuse("model.dropout", rate, must="be at least 0 and below 1", advice="try 0.1")


MODEL_RULES = (
    heads_share_keys_and_values,
    heads_share_hidden,
    rotary_turns_pairs,
    rope_scaling_stretches,
    two_stream_layers_exist,
    plain_stack_starts_from_tokens,
    position_tables_reach,
    projections_have_root_mean_squares,
    dropout_leaves_some,
)
