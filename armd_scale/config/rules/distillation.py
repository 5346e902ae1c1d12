"""Rules of distillation from a frozen teacher."""

from armd_scale.config.messages import raise_rule_error
from armd_scale.config.schema import Recipe


def check_teacher(recipe: Recipe) -> None:
    """The teacher has a path, and its weight in the loss is not negative."""
    distillation = recipe.train.distillation
    if distillation is None:
        return
    if not distillation.checkpoint.strip():
        raise_rule_error(
            "train.distillation.checkpoint",
            distillation.checkpoint,
            requirement="not be blank",
            hint="name a checkpoint, or remove train.distillation",
        )
    # A negative weight would train the model away from its teacher.
    if distillation.weight < 0:
        key, hint = "train.distillation.weight", "0 only reports the divergence"
        raise_rule_error(key, distillation.weight, requirement="be >= 0", hint=hint)


def check_teacher_without_pipeline(recipe: Recipe) -> None:
    """There is no pipeline: the teacher runs where the loss is, and needs all its layers there."""
    pipeline = recipe.parallel.pipeline
    if recipe.train.distillation is not None and pipeline > 1:
        requirement = "be 1 with train.distillation, because the teacher runs where the loss is"
        hint = "split the model with parallel.tensor and optim.zero_stage=3 instead"
        raise_rule_error("parallel.pipeline", pipeline, requirement=requirement, hint=hint)


def check_teacher_needs_l2r_samples(recipe: Recipe) -> None:
    """The order draws left-to-right samples, the only ones on which the two are compared."""
    if recipe.train.distillation is not None and not recipe.order.can_be_left_to_right:
        requirement = "draw some samples left to right with train.distillation"
        hint = "add l2r to a mixture or 1 to order.streams, or remove train.distillation"
        raise_rule_error("order.policy", recipe.order.policy, requirement=requirement, hint=hint)


DISTILLATION_RULES = (
    check_teacher,
    check_teacher_without_pipeline,
    check_teacher_needs_l2r_samples,
)
