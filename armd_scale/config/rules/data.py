"""Rules of the training data and of what is evaluated during training."""

from armd_scale.config.messages import raise_rule_error
from armd_scale.config.schema import Recipe


def check_blend_weights(recipe: Recipe) -> None:
    """A blend has at least one source, and every source has a prefix and a positive weight."""
    sources = recipe.data.train
    if isinstance(sources, str):
        return
    if not sources:
        raise_rule_error(
            "data.train",
            sources,
            requirement="name at least one source",
            hint="add a mapping of path and weight",
        )
    for index, source in enumerate(sources):
        if not source.prefixes:
            key, hint = f"data.train.{index}.path", "remove the source to leave it out"
            raise_rule_error(key, [], requirement="name at least one prefix", hint=hint)
        # `data.blending` divides by the weights: a source produces a sample every 1 / weight.
        if source.weight <= 0:
            key, hint = f"data.train.{index}.weight", "remove the source to leave it out"
            raise_rule_error(key, source.weight, requirement="be > 0", hint=hint)


def check_eval_inputs(recipe: Recipe) -> None:
    """Evaluations need validation data and at least one order."""
    if recipe.eval.every_steps == 0:
        return
    hint = "or set eval.every_steps=0"
    if recipe.data.valid is None:
        requirement = "name the validation data while eval.every_steps is > 0"
        raise_rule_error("data.valid", None, requirement=requirement, hint=f"set it, {hint}")
    if not recipe.eval.orders:
        requirement = "name at least one order while eval.every_steps is > 0"
        value = recipe.eval.orders
        raise_rule_error("eval.orders", value, requirement=requirement, hint=f"add l2r, {hint}")


DATA_RULES = (check_blend_weights, check_eval_inputs)
