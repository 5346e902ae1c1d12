"""Apply all rules to a recipe: `check` to a recipe alone, `check_world` with a number of processes.

The SPECs of `eval.orders` are checked where they are parsed, by `order.spec`.
"""

from armd_scale.config.rules.bounds import BOUND_RULES
from armd_scale.config.rules.data import DATA_RULES
from armd_scale.config.rules.distillation import DISTILLATION_RULES
from armd_scale.config.rules.layout import LAYOUT_RULES, WORLD_RULES
from armd_scale.config.rules.model import MODEL_RULES
from armd_scale.config.rules.optim import OPTIM_RULES
from armd_scale.config.rules.order import ORDER_RULES
from armd_scale.config.schema import Recipe

# In this order: rules may rely on those before them. `check_rotary` reads the width of a head,
# which only `check_head_dim` has shown to be a whole number.
RULES = (
    *BOUND_RULES,
    *DATA_RULES,
    *OPTIM_RULES,
    *MODEL_RULES,
    *LAYOUT_RULES,
    *DISTILLATION_RULES,
    *ORDER_RULES,
)


def check(recipe: Recipe) -> None:
    """Apply every rule that does not depend on the number of processes.

    Raises:
        RecipeError: the first violated rule: key, what must hold, the value, what to do.
    """
    for rule in RULES:
        rule(recipe)


def check_world(recipe: Recipe, world_size: int) -> None:
    """Apply the rules that relate a checked recipe to the number of processes.

    Args:
        recipe: a recipe that passed `check`.
        world_size: number of processes, one per GPU.

    Raises:
        RecipeError: the first violated rule.
    """
    for rule in WORLD_RULES:
        rule(recipe, world_size)
