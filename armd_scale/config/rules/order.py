"""What orders must hold beyond their types, on top or inside mixtures and stages."""

from collections.abc import Iterator

from armd_scale.config import derived as derive
from armd_scale.config.messages import raise_rule_error
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
    if isinstance(order, MixtureConfig):
        for i, part in enumerate(order.components):
            yield from _orders(part.order, f"{path}.components.{i}")
    if isinstance(order, StagesConfig):
        for i, stage in enumerate(order.stages):
            yield from _orders(stage.order, f"{path}.stages.{i}")


def check_progressive(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Shuffling starts at or after 0, ends at or after its start, and fits the sample."""
    if not isinstance(order, ProgressiveConfig):
        return
    if order.ar_steps < 0:
        raise_rule_error(
            f"{path}.ar_steps", order.ar_steps, requirement="be at least 0", hint="raise it"
        )
    if order.ar_steps > order.ramp_end:
        must = f"be at most ramp_end ({order.ramp_end})"
        raise_rule_error(
            f"{path}.ar_steps", order.ar_steps, requirement=must, hint="change one of them"
        )
    if not 1 <= order.rho <= recipe.data.seq_length:
        must = f"lie between 1 and data.seq_length ({recipe.data.seq_length})"
        raise_rule_error(f"{path}.rho", order.rho, requirement=must, hint="change one of them")


def check_stream_and_group_sizes(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Streams and groups are at least one, and at most as many as targets."""
    if isinstance(order, StridedConfig):
        key, lengths = f"{path}.streams", order.streams
    elif isinstance(order, GroupsConfig | PermutedGroupsConfig):
        key, lengths = f"{path}.sizes", order.sizes
    else:
        return
    if not lengths:
        raise_rule_error(key, lengths, requirement="hold at least one number", hint="add one")
    for i, length in enumerate(lengths):
        if not 1 <= length <= recipe.data.seq_length:
            must = f"lie between 1 and data.seq_length ({recipe.data.seq_length})"
            raise_rule_error(
                f"{key}.{i}", length, requirement=must, hint="change it or take it out"
            )


def check_ramp_end(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """A ramp over group sizes does not end before the run starts."""
    if isinstance(order, GroupsConfig | PermutedGroupsConfig) and order.ramp_end < 0:
        advice = "give a step, or 0 to draw a size per sample"
        raise_rule_error(
            f"{path}.ramp_end", order.ramp_end, requirement="be at least 0", hint=advice
        )


def check_num_timesteps(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """There is at least one masking time."""
    if isinstance(order, DiffusionConfig) and order.num_timesteps < 1:
        raise_rule_error(
            f"{path}.num_timesteps",
            order.num_timesteps,
            requirement="be at least 1",
            hint="raise it",
        )


def check_mixture_weights(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """A mixture has parts, and every part a positive weight."""
    if not isinstance(order, MixtureConfig):
        return
    if not order.components:
        raise_rule_error(
            f"{path}.components",
            order.components,
            requirement="hold at least one order",
            hint="add one",
        )
    for i, part in enumerate(order.components):
        if part.weight <= 0:
            key = f"{path}.components.{i}.weight"
            raise_rule_error(
                key, part.weight, requirement="be above 0", hint="raise it or take the part out"
            )


def check_stage_boundaries(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Every stage but the last ends, later than the one before; the last one never does."""
    if not isinstance(order, StagesConfig):
        return
    if not order.stages:
        raise_rule_error(
            f"{path}.stages", order.stages, requirement="hold at least one order", hint="add one"
        )
    *ending, last = order.stages
    if last.until_step is not None:
        key = f"{path}.stages.{len(ending)}.until_step"
        raise_rule_error(
            key, last.until_step, requirement="be left out in the last stage", hint="remove it"
        )
    before = 0
    for i, part in enumerate(ending):
        if part.until_step is None or part.until_step <= before:
            must = f"be a step after {before}"
            advice = "stages end one after another, and only the last is open"
            raise_rule_error(
                f"{path}.stages.{i}.until_step", part.until_step, requirement=must, hint=advice
            )
        before = part.until_step


def check_ar_model_order(order: OrderConfig, path: str, recipe: Recipe) -> None:
    """Without a content stream a row starts from one token, which suits text order alone."""
    leaf = not isinstance(order, LeftToRightConfig | MixtureConfig | StagesConfig)
    if leaf and derive.two_stream_layers(recipe.model) == 0:
        must = "be l2r when model.two_stream_layers is 0"
        raise_rule_error(
            f"{path}.policy", order.policy, requirement=must, hint="give it two-stream layers"
        )


RULES = (
    check_progressive,
    check_stream_and_group_sizes,
    check_ramp_end,
    check_num_timesteps,
    check_mixture_weights,
    check_stage_boundaries,
    check_ar_model_order,
)
