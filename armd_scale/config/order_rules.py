"""What orders must hold beyond their types, on top or inside mixtures and stages."""

from collections.abc import Iterator

from armd_scale.config import derive
from armd_scale.config.schema import (
    DiffusionConfig,
    GroupsConfig,
    LeftToRightConfig,
    MixtureConfig,
    OrderConfig,
    PermutedGroupsConfig,
    ProgressiveConfig,
    Recipe,
    StagesConfig,
    StridedConfig,
)
from armd_scale.config.wording import refuse


def check_order(recipe: Recipe) -> None:
    """Applies every rule to the recipe's order and to all orders inside it.

    Raises:
        RecipeError: the first rule that is broken.
    """
    for path, order in _orders(recipe.order, "order"):
        for rule in RULES:
            rule(order, path, recipe)


def _orders(order: OrderConfig, path: str) -> Iterator[tuple[str, OrderConfig]]:
    """An order and those inside it, each with its dotted path."""
    yield path, order
    if isinstance(order, MixtureConfig | StagesConfig):
        for i, part in enumerate(order.parts):
            yield from _orders(part.order, f"{path}.parts.{i}")


def progressive_grows(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Shuffling starts at or after 0, ends at or after its start, and fits the sample."""
    if not isinstance(order, ProgressiveConfig):
        return
    if order.ar_steps < 0:
        refuse(f"{path}.ar_steps", order.ar_steps, must="be at least 0", advice="raise it")
    if order.ar_steps > order.ramp_end:
        must = f"be at most ramp_end ({order.ramp_end})"
        refuse(f"{path}.ar_steps", order.ar_steps, must=must, advice="change one of them")
    if not 1 <= order.rho <= recipe.data.seq_length:
        must = f"lie between 1 and data.seq_length ({recipe.data.seq_length})"
        refuse(f"{path}.rho", order.rho, must=must, advice="change one of them")


def lengths_fit_the_sample(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Streams and groups are at least one, and at most as many as targets."""
    if isinstance(order, StridedConfig):
        key, lengths = f"{path}.streams", order.streams
    elif isinstance(order, GroupsConfig | PermutedGroupsConfig):
        key, lengths = f"{path}.sizes", order.sizes
    else:
        return
    if not lengths:
        refuse(key, lengths, must="hold at least one number", advice="add one")
    for i, length in enumerate(lengths):
        if not 1 <= length <= recipe.data.seq_length:
            must = f"lie between 1 and data.seq_length ({recipe.data.seq_length})"
            refuse(f"{key}.{i}", length, must=must, advice="change it or take it out")


def ramp_is_ahead(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """A ramp over group sizes does not end before the run starts."""
    if isinstance(order, GroupsConfig | PermutedGroupsConfig) and order.ramp_end < 0:
        advice = "give a step, or 0 to draw a size per sample"
        refuse(f"{path}.ramp_end", order.ramp_end, must="be at least 0", advice=advice)


def diffusion_has_times(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """There is at least one masking time."""
    if isinstance(order, DiffusionConfig) and order.times < 1:
        refuse(f"{path}.times", order.times, must="be at least 1", advice="raise it")


def mixture_has_weights(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """A mixture has parts, and every part a positive weight."""
    if not isinstance(order, MixtureConfig):
        return
    if not order.parts:
        refuse(f"{path}.parts", order.parts, must="hold at least one order", advice="add one")
    for i, part in enumerate(order.parts):
        if part.weight <= 0:
            key = f"{path}.parts.{i}.weight"
            refuse(key, part.weight, must="be above 0", advice="raise it or take the part out")


def stages_follow_each_other(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Every stage but the last ends, later than the one before; the last one never does."""
    if not isinstance(order, StagesConfig):
        return
    if not order.parts:
        refuse(f"{path}.parts", order.parts, must="hold at least one order", advice="add one")
    *ending, last = order.parts
    if last.until is not None:
        key = f"{path}.parts.{len(ending)}.until"
        refuse(key, last.until, must="be left out in the last stage", advice="remove it")
    before = 0
    for i, part in enumerate(ending):
        if part.until is None or part.until <= before:
            must = f"be a step after {before}"
            advice = "stages end one after another, and only the last is open"
            refuse(f"{path}.parts.{i}.until", part.until, must=must, advice=advice)
        before = part.until


def plain_stack_reads_forward(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Without a content stream a row starts from one token, which suits text order alone."""
    leaf = not isinstance(order, LeftToRightConfig | MixtureConfig | StagesConfig)
    if leaf and derive.two_stream_layers(recipe.model) == 0:
        must = "be l2r when model.two_stream_layers is 0"
        refuse(f"{path}.policy", order.policy, must=must, advice="give it two-stream layers")


RULES = (
    progressive_grows,
    lengths_fit_the_sample,
    ramp_is_ahead,
    diffusion_has_times,
    mixture_has_weights,
    stages_follow_each_other,
    plain_stack_reads_forward,
)
