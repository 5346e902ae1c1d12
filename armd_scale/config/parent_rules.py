"""What a recipe must hold to train beside a frozen parent."""

from armd_scale.config.schema import (
    GroupsConfig,
    LeftToRightConfig,
    MixtureConfig,
    OrderConfig,
    ProgressiveConfig,
    Recipe,
    StagesConfig,
    StridedConfig,
)
from armd_scale.config.wording import refuse


def parent_is_named(recipe: Recipe) -> None:
    """The parent has a path, and it pulls or does nothing, but never pushes."""
    parent = recipe.train.parent
    if parent is None:
        return
    if not parent.checkpoint.strip():
        refuse(
            "train.parent.checkpoint",
            parent.checkpoint,
            must="not be blank",
            advice="name a checkpoint, or leave train.parent out",
        )
    if parent.weight < 0:
        must, advice = "be at least 0", "raise it, or leave train.parent out"
        refuse("train.parent.weight", parent.weight, must=must, advice=advice)


def parent_needs_all_layers(recipe: Recipe) -> None:
    """Its rows are compared in the last stage, which holds no other stage's layers."""
    pipeline = recipe.parallel.pipeline
    if recipe.train.parent is not None and pipeline > 1:
        must = "be 1 with train.parent, because the parent runs where the loss is computed"
        advice = "split the model with parallel.tensor and optim.zero_stage=3, or drop train.parent"
        refuse("parallel.pipeline", pipeline, must=must, advice=advice)


def parent_has_text_order(recipe: Recipe) -> None:
    """Parent and model are compared left to right, in samples that the order must then draw."""
    if recipe.train.parent is not None and not _draws_text_order(recipe.order):
        must = "draw some samples left to right with train.parent"
        advice = "add l2r to a mixture or 1 to order.streams, or drop train.parent"
        refuse("order.policy", recipe.order.policy, must=must, advice=advice)


def _draws_text_order(order: OrderConfig) -> bool:
    match order:
        case LeftToRightConfig():
            return True
        case ProgressiveConfig():
            return order.ar_steps > 0
        case StridedConfig():
            return 1 in order.streams
        case GroupsConfig():
            return 1 in order.sizes
        case MixtureConfig() | StagesConfig():
            return any(_draws_text_order(part.order) for part in order.parts)
    return False


PARENT_RULES = (parent_is_named, parent_needs_all_layers, parent_has_text_order)
