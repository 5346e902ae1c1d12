"""What a recipe must hold to train beside a frozen parent."""

from armd_scale.config.messages import raise_rule_error
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


def check_teacher(recipe: Recipe) -> None:
    """The parent has a path, and it pulls or does nothing, but never pushes."""
    parent = recipe.train.distillation
    if parent is None:
        return
    if not parent.checkpoint.strip():
        raise_rule_error(
            "train.distillation.checkpoint",
            parent.checkpoint,
            requirement="not be blank",
            hint="name a checkpoint, or leave train.distillation out",
        )
    if parent.weight < 0:
        must, advice = "be at least 0", "raise it, or leave train.distillation out"
        raise_rule_error("train.distillation.weight", parent.weight, requirement=must, hint=advice)


def check_teacher_without_pipeline(recipe: Recipe) -> None:
    """Its rows are compared in the last stage, which holds no other stage's layers."""
    pipeline = recipe.parallel.pipeline
    if recipe.train.distillation is not None and pipeline > 1:
        must = "be 1 with train.distillation, because the parent runs where the loss is computed"
        advice = "split the model with parallel.tensor and optim.zero_stage=3, or drop train.distillation"
        raise_rule_error("parallel.pipeline", pipeline, requirement=must, hint=advice)


def check_teacher_needs_l2r_samples(recipe: Recipe) -> None:
    """Parent and model are compared left to right, in samples that the order must then draw."""
    if recipe.train.distillation is not None and not _draws_text_order(recipe.order):
        must = "draw some samples left to right with train.distillation"
        advice = "add l2r to a mixture or 1 to order.streams, or drop train.distillation"
        raise_rule_error("order.policy", recipe.order.policy, requirement=must, hint=advice)


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
        case MixtureConfig():
            return any(_draws_text_order(part.order) for part in order.components)
        case StagesConfig():
            return any(_draws_text_order(stage.order) for stage in order.stages)
    return False


PARENT_RULES = (check_teacher, check_teacher_without_pipeline, check_teacher_needs_l2r_samples)
