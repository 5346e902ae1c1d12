"""Rules of the optimizer, its schedule, the batch sizes and the loss guard."""

from armd_scale.config.messages import raise_rule_error
from armd_scale.config.resolve import resolve_decay_steps
from armd_scale.config.schema import Recipe


def check_min_lr(recipe: Recipe) -> None:
    """The last learning rate is not above the peak."""
    optim = recipe.optim
    if optim.min_lr > optim.lr:
        raise_rule_error("optim.min_lr", optim.min_lr, requirement=f"be <= optim.lr = {optim.lr}")


def check_lr_schedule_length(recipe: Recipe) -> None:
    """Warm-up ends before the run does, and the final decay of `wsd` fits after it."""
    optim, steps = recipe.optim, recipe.train.steps
    if optim.warmup_steps >= steps:
        requirement = f"be < train.steps = {steps}"
        raise_rule_error("optim.warmup_steps", optim.warmup_steps, requirement=requirement)
    if optim.schedule != "wsd":
        # 0 is what `resolve` writes for the other schedules, so a resolved recipe loads again.
        if optim.decay_steps:
            requirement = "be null unless optim.schedule is wsd"
            raise_rule_error("optim.decay_steps", optim.decay_steps, requirement=requirement)
        return
    decay_steps = resolve_decay_steps(optim, recipe.train)
    longest = steps - optim.warmup_steps
    if not 1 <= decay_steps <= longest:
        requirement = f"be between 1 and train.steps - optim.warmup_steps = {longest}"
        raise_rule_error("optim.decay_steps", decay_steps, requirement=requirement)


def check_betas_and_ema(recipe: Recipe) -> None:
    """Decay rates of running averages are between 0 and 1."""
    for index, beta in enumerate(recipe.optim.betas):
        # AdamW divides by 1 - beta^t, which is 0 for beta = 1.
        if not 0 <= beta < 1:
            key, requirement = f"optim.betas.{index}", "be >= 0 and < 1"
            raise_rule_error(key, beta, requirement=requirement, hint="try 0.9 and 0.95")
    ema_decay = recipe.optim.ema_decay
    if ema_decay is not None and not 0 < ema_decay < 1:
        hint = "try 0.9999, or null for no average"
        raise_rule_error("optim.ema_decay", ema_decay, requirement="be > 0 and < 1", hint=hint)


def check_global_batch(recipe: Recipe) -> None:
    """An optimizer step is a whole number of micro-batches."""
    train = recipe.train
    if train.global_batch % train.micro_batch:
        requirement = f"be a multiple of train.micro_batch = {train.micro_batch}"
        raise_rule_error("train.global_batch", train.global_batch, requirement=requirement)


def check_spike_factor(recipe: Recipe) -> None:
    """A spike is above the median loss."""
    factor = recipe.train.loss_guard.spike_factor
    # Half of all losses are above their median: a factor of 1 would skip every other step.
    if factor != 0 and factor <= 1:
        hint = "try 2, or 0 for no detection"
        raise_rule_error(
            "train.loss_guard.spike_factor", factor, requirement="be 0 or > 1", hint=hint
        )


OPTIM_RULES = (
    check_min_lr,
    check_lr_schedule_length,
    check_betas_and_ema,
    check_global_batch,
    check_spike_factor,
)
