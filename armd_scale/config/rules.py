"""What a recipe must hold beyond its types: one rule, one function, one sentence.

`check` is for a recipe alone, `check_world` for a recipe on a number of processes. The grammar
of `eval.orders` belongs to the orders and is checked where they are parsed.
"""

import operator

from armd_scale.config import derive
from armd_scale.config.layout_rules import LAYOUT_RULES, WORLD_RULES
from armd_scale.config.model_rules import MODEL_RULES
from armd_scale.config.order_rules import check_order
from armd_scale.config.parent_rules import PARENT_RULES
from armd_scale.config.schema import Recipe
from armd_scale.config.wording import refuse

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
    "model.gap_rows": 1,
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
    "train.guard.window": 1,
    "train.guard.patience": 1,
    "train.guard.rollbacks": 0,
    "train.hang_seconds": 0,
    "checkpoint.every_steps": 0,
    "checkpoint.keep": 1,
    "eval.every_steps": 0,
    "eval.samples": 1,
    "log.every_steps": 0,
}
ABOVE_ZERO = (
    "model.rope_base",
    "model.norm_epsilon",
    "model.init_std",
    "optim.lr",
    "optim.epsilon",
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


def amounts_are_possible(recipe: Recipe) -> None:
    """Counts and rates do not fall below what they count."""
    for key, lowest in AT_LEAST.items():
        value = operator.attrgetter(key)(recipe)
        if value is not None and value < lowest:
            refuse(key, value, must=f"be at least {lowest}", advice="raise it")
    for key in ABOVE_ZERO:
        value = operator.attrgetter(key)(recipe)
        if value <= 0:
            refuse(key, value, must="be above 0", advice="raise it")


def names_are_given(recipe: Recipe) -> None:
    """Names and folders are not blank."""
    for key in ("run.name", "run.folder", "checkpoint.resume"):
        value = operator.attrgetter(key)(recipe)
        if not value.strip():
            refuse(key, value, must="not be blank", advice="name it")


def sources_have_weights(recipe: Recipe) -> None:
    """A blend has sources, and every source a positive weight."""
    sources = recipe.data.train
    if isinstance(sources, str):
        return
    if not sources:
        refuse(
            "data.train", sources, must="name at least one source", advice="give path and weight"
        )
    for i, source in enumerate(sources):
        if source.weight <= 0:
            key = f"data.train.{i}.weight"
            refuse(key, source.weight, must="be above 0", advice="raise it or take the source out")


def learning_rate_falls(recipe: Recipe) -> None:
    """The last learning rate is not above the peak."""
    optim = recipe.optim
    if optim.min_lr > optim.lr:
        must = f"be at most optim.lr ({optim.lr})"
        refuse("optim.min_lr", optim.min_lr, must=must, advice="change one of them")


def schedule_fits_the_run(recipe: Recipe) -> None:
    """Warm-up ends before the run does, and a final decay lies behind it."""
    optim, steps = recipe.optim, recipe.train.steps
    if optim.warmup_steps >= steps:
        must, advice = f"be below train.steps ({steps})", "change one of them"
        refuse("optim.warmup_steps", optim.warmup_steps, must=must, advice=advice)
    if optim.schedule != "wsd":
        if optim.decay_steps is not None:
            must, advice = "be null unless optim.schedule is wsd", "leave it out"
            refuse("optim.decay_steps", optim.decay_steps, must=must, advice=advice)
        return
    decay, room = derive.decay_steps(optim, recipe.train), steps - optim.warmup_steps
    if decay > room:
        must = f"be at most train.steps - optim.warmup_steps ({room})"
        refuse("optim.decay_steps", decay, must=must, advice="shorten decay or warm-up")


def averages_decay(recipe: Recipe) -> None:
    """Decay rates of running averages are fractions."""
    for i, beta in enumerate(recipe.optim.betas):
        if not 0 <= beta < 1:
            refuse(f"optim.betas.{i}", beta, must="lie between 0 and 1", advice="try 0.9 and 0.95")
    ema = recipe.optim.ema_decay
    if ema is not None and not 0 < ema < 1:
        advice = "try 0.9999, or null for none"
        refuse("optim.ema_decay", ema, must="lie between 0 and 1", advice=advice)


def micro_batches_fill_the_batch(recipe: Recipe) -> None:
    """An optimizer step is a whole number of micro-batches."""
    train = recipe.train
    if train.global_batch % train.micro_batch:
        must = f"be a multiple of train.micro_batch ({train.micro_batch})"
        refuse("train.global_batch", train.global_batch, must=must, advice="change one of them")


def spikes_stand_out(recipe: Recipe) -> None:
    """A spike is above the usual loss."""
    factor = recipe.train.guard.spike_factor
    if factor != 0 and factor <= 1:
        must, advice = "be 0 or above 1", "try 2, or 0 for no spikes"
        refuse("train.guard.spike_factor", factor, must=must, advice=advice)


def evaluation_has_text(recipe: Recipe) -> None:
    """Evaluating needs held-out shards and an order."""
    if recipe.eval.every_steps == 0:
        return
    if recipe.data.valid is None:
        must, advice = "name held-out shards to evaluate on", "give it, or set eval.every_steps=0"
        refuse("data.valid", None, must=must, advice=advice)
    if not recipe.eval.orders:
        must, advice = "name an order to evaluate under", "add l2r, or set eval.every_steps=0"
        refuse("eval.orders", recipe.eval.orders, must=must, advice=advice)


RULES = (
    amounts_are_possible,
    names_are_given,
    sources_have_weights,
    learning_rate_falls,
    schedule_fits_the_run,
    averages_decay,
    micro_batches_fill_the_batch,
    spikes_stand_out,
    evaluation_has_text,
)
