"""What a recipe must hold beyond its types: one rule, one function, one sentence.

`check` is for a recipe alone, `check_world` for a recipe on a number of processes. The grammar
of `eval.orders` belongs to the orders and is checked where they are parsed.
"""

import operator

from armd_scale.config import derived as derive
from armd_scale.config.messages import raise_rule_error
from armd_scale.config.rules.distillation import PARENT_RULES
from armd_scale.config.rules.layout import LAYOUT_RULES, WORLD_RULES
from armd_scale.config.rules.model import MODEL_RULES
from armd_scale.config.rules.order import check_order
from armd_scale.config.schema import Recipe

AT_LEAST = {
    "data.seq_length": 1,
    "data.workers": 0,
    "model.layers": 1,
    "model.hidden": 1,
    "model.ffn_hidden": 1,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.head_dim": 1,
    "model.vocab_size": 2,
    "model.max_anchor_gap": 1,
    "model.prefix_width": 1,
    "parallel.tensor": 1,
    "parallel.pipeline": 1,
    "parallel.virtual_pipeline": 1,
    "parallel.context": 1,
    "optim.min_lr": 0,
    "optim.warmup_steps": 0,
    "optim.decay_steps": 1,
    "optim.weight_decay": 0,
    "optim.clip_grad": 0,
    "train.steps": 1,
    "train.micro_batch": 1,
    "train.global_batch": 1,
    "train.loss_guard.window_steps": 1,
    "train.loss_guard.max_consecutive_bad_steps": 1,
    "train.loss_guard.max_rollbacks": 0,
    "train.hang_timeout_seconds": 0,
    "checkpoint.every_steps": 0,
    "checkpoint.keep": 1,
    "eval.every_steps": 0,
    "eval.samples": 1,
    "log.every_steps": 0,
}
ABOVE_ZERO = (
    "model.rope_theta",
    "model.norm_eps",
    "model.init_std",
    "optim.lr",
    "optim.eps",
)


def check(recipe: Recipe) -> None:
    """Applies every rule that does not depend on the number of processes.

    Raises:
        RecipeError: the first rule that is broken: key, what must hold, value, what to do.
    """
    for rule in (*RULES, *MODEL_RULES, *LAYOUT_RULES, *PARENT_RULES):
        rule(recipe)
    check_order(recipe)


def check_world(recipe: Recipe, world_size: int) -> None:
    """Applies the rules that tie a checked recipe to the number of processes.

    Args:
        recipe: a recipe that passed `check`.
        world_size: number of processes, one per GPU.

    Raises:
        RecipeError: the first rule that is broken.
    """
    for rule in WORLD_RULES:
        rule(recipe, world_size)


def check_lower_bounds(recipe: Recipe) -> None:
    """Counts and rates do not fall below what they count."""
    for key, lowest in AT_LEAST.items():
        value = operator.attrgetter(key)(recipe)
        if value is not None and value < lowest:
            raise_rule_error(key, value, requirement=f"be at least {lowest}", hint="raise it")
    for key in ABOVE_ZERO:
        value = operator.attrgetter(key)(recipe)
        if value <= 0:
            raise_rule_error(key, value, requirement="be above 0", hint="raise it")


def check_not_blank(recipe: Recipe) -> None:
    """Names and folders are not blank."""
    for key in ("run.name", "run.folder", "checkpoint.resume"):
        value = operator.attrgetter(key)(recipe)
        if not value.strip():
            raise_rule_error(key, value, requirement="not be blank", hint="name it")


def check_blend_weights(recipe: Recipe) -> None:
    """A blend has sources, and every source a positive weight."""
    sources = recipe.data.train
    if isinstance(sources, str):
        return
    if not sources:
        raise_rule_error(
            "data.train",
            sources,
            requirement="name at least one source",
            hint="give path and weight",
        )
    for i, source in enumerate(sources):
        if source.weight <= 0:
            key = f"data.train.{i}.weight"
            raise_rule_error(
                key, source.weight, requirement="be above 0", hint="raise it or take the source out"
            )


def check_min_lr(recipe: Recipe) -> None:
    """The last learning rate is not above the peak."""
    optim = recipe.optim
    if optim.min_lr > optim.lr:
        must = f"be at most optim.lr ({optim.lr})"
        raise_rule_error("optim.min_lr", optim.min_lr, requirement=must, hint="change one of them")


def check_lr_schedule_length(recipe: Recipe) -> None:
    """Warm-up ends before the run does, and a final decay lies behind it."""
    optim, steps = recipe.optim, recipe.train.steps
    if optim.warmup_steps >= steps:
        must, advice = f"be below train.steps ({steps})", "change one of them"
        raise_rule_error("optim.warmup_steps", optim.warmup_steps, requirement=must, hint=advice)
    if optim.schedule != "wsd":
        if optim.decay_steps is not None:
            must, advice = "be null unless optim.schedule is wsd", "leave it out"
            raise_rule_error("optim.decay_steps", optim.decay_steps, requirement=must, hint=advice)
        return
    decay, room = derive.decay_steps(optim, recipe.train), steps - optim.warmup_steps
    if decay > room:
        must = f"be at most train.steps - optim.warmup_steps ({room})"
        raise_rule_error(
            "optim.decay_steps", decay, requirement=must, hint="shorten decay or warm-up"
        )


def check_betas_and_ema(recipe: Recipe) -> None:
    """Decay rates of running averages are fractions."""
    for i, beta in enumerate(recipe.optim.betas):
        if not 0 <= beta < 1:
            raise_rule_error(
                f"optim.betas.{i}", beta, requirement="lie between 0 and 1", hint="try 0.9 and 0.95"
            )
    ema = recipe.optim.ema_decay
    if ema is not None and not 0 < ema < 1:
        advice = "try 0.9999, or null for none"
        raise_rule_error("optim.ema_decay", ema, requirement="lie between 0 and 1", hint=advice)


def check_global_batch(recipe: Recipe) -> None:
    """An optimizer step is a whole number of micro-batches."""
    train = recipe.train
    if train.global_batch % train.micro_batch:
        must = f"be a multiple of train.micro_batch ({train.micro_batch})"
        raise_rule_error(
            "train.global_batch", train.global_batch, requirement=must, hint="change one of them"
        )


def check_spike_factor(recipe: Recipe) -> None:
    """A spike is above the usual loss."""
    factor = recipe.train.loss_guard.spike_factor
    if factor != 0 and factor <= 1:
        must, advice = "be 0 or above 1", "try 2, or 0 for no spikes"
        raise_rule_error("train.loss_guard.spike_factor", factor, requirement=must, hint=advice)


def check_eval_inputs(recipe: Recipe) -> None:
    """Evaluating needs held-out shards and an order."""
    if recipe.eval.every_steps == 0:
        return
    if recipe.data.valid is None:
        must, advice = "name held-out shards to evaluate on", "give it, or set eval.every_steps=0"
        raise_rule_error("data.valid", None, requirement=must, hint=advice)
    if not recipe.eval.orders:
        must, advice = "name an order to evaluate under", "add l2r, or set eval.every_steps=0"
        raise_rule_error("eval.orders", recipe.eval.orders, requirement=must, hint=advice)


RULES = (
    check_lower_bounds,
    check_not_blank,
    check_blend_weights,
    check_min_lr,
    check_lr_schedule_length,
    check_betas_and_ema,
    check_global_batch,
    check_spike_factor,
    check_eval_inputs,
)
