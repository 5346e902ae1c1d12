"""Rules of the order policy and of all policies inside it, in mixtures and stages."""

from collections.abc import Iterator

from armd_scale.config.messages import raise_rule_error
from armd_scale.config.resolve import resolve_two_stream_layers
from armd_scale.config.schema import Recipe
from armd_scale.order.policies.base import OrderPolicy


def check_order_policies(recipe: Recipe) -> None:
    """Every policy accepts its own recipe keys (`OrderPolicy.violations`)."""
    for path, policy in _policies(recipe.order, "order"):
        for violation in policy.violations(recipe.data.seq_length):
            raise_rule_error(
                f"{path}.{violation.key}",
                violation.value,
                requirement=violation.requirement,
                hint=violation.hint,
            )


def check_ar_model_order(recipe: Recipe) -> None:
    """Without two-stream layers a row starts from a single token, so only `l2r` can be learned."""
    if resolve_two_stream_layers(recipe.model) > 0:
        return
    for path, policy in _policies(recipe.order, "order"):
        # Mixtures and stages have no order of their own; what they consist of is checked instead.
        is_leaf = next(policy.children(), None) is None
        if is_leaf and not policy.is_left_to_right:
            requirement = "be l2r when model.two_stream_layers is 0"
            hint = "add two-stream layers for other orders"
            raise_rule_error(f"{path}.policy", policy.policy, requirement=requirement, hint=hint)


def _policies(policy: OrderPolicy, path: str) -> Iterator[tuple[str, OrderPolicy]]:
    """Yield a policy and those inside it, each with its dotted path."""
    yield path, policy
    for child_path, child in policy.children():
        yield from _policies(child, f"{path}.{child_path}")


ORDER_RULES = (check_order_policies, check_ar_model_order)
