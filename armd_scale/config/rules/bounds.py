"""Bounds of single numbers, and texts that must not be blank."""

import operator

from armd_scale.config.messages import raise_rule_error
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
    # With a single token every prediction is certain and every loss 0.
    "model.vocab_size": 2,
    # Row 0 of the gap table is fixed at zero, so K = 0 would leave nothing to learn.
    "model.max_anchor_gap": 1,
    "model.prefix_width": 1,
    "parallel.tensor": 1,
    "parallel.pipeline": 1,
    "parallel.virtual_pipeline": 1,
    "parallel.context": 1,
    "optim.min_lr": 0,
    "optim.warmup_steps": 0,
    "optim.decay_steps": 0,
    "optim.weight_decay": 0,
    "optim.clip_grad": 0,
    "train.steps": 1,
    "train.micro_batch": 1,
    "train.global_batch": 1,
    # The median of no losses does not exist.
    "train.loss_guard.window_steps": 1,
    "train.loss_guard.max_consecutive_bad_steps": 1,
    "train.loss_guard.max_rollbacks": 0,
    "train.hang_timeout_seconds": 0,
    "checkpoint.every_steps": 0,
    "checkpoint.keep": 0,
    "checkpoint.keep_every": 0,
    "eval.every_steps": 0,
    "eval.samples": 1,
    "log.every_steps": 0,
}
# Far above anything that exists, and low enough that products of two of them are exact in int64
# or float64 arithmetic, and that no loop over layers or processes runs for ever.
AT_MOST = dict.fromkeys(AT_LEAST, 10**9) | {
    "data.seq_length": 10**8,
    "data.workers": 256,
    "model.layers": 10_000,
    "parallel.tensor": 10_000,
    "parallel.pipeline": 10_000,
    "parallel.virtual_pipeline": 10_000,
    "parallel.context": 10_000,
    "train.steps": 10**12,
    "model.max_positions": 10**9,
}
# With eps = 0 AdamW computes 0 / 0 for a weight whose gradient is always 0, such as row 0 of the
# gap table; with norm_eps = 0 a norm does the same on a row of zeros. With init_std = 0 all
# matrices are 0 and none of them ever gets a gradient.
ABOVE_ZERO = (
    "model.rope_theta",
    "model.norm_eps",
    "model.init_std",
    "optim.lr",
    "optim.eps",
)
NOT_BLANK = ("run.name", "run.folder", "checkpoint.resume")


def check_bounds(recipe: Recipe) -> None:
    """Counts and rates are between their least meaningful and an absurdly large value."""
    for key, bound in AT_LEAST.items():
        value = operator.attrgetter(key)(recipe)
        # null is no number to compare: `resolve` fills it in from keys that are checked themselves.
        if value is not None and value < bound:
            raise_rule_error(key, value, requirement=f"be >= {bound}")
    for key, bound in AT_MOST.items():
        value = operator.attrgetter(key)(recipe)
        if value is not None and value > bound:
            raise_rule_error(key, value, requirement=f"be <= {bound}")
    for key in ABOVE_ZERO:
        value = operator.attrgetter(key)(recipe)
        if value <= 0:
            raise_rule_error(key, value, requirement="be > 0")


def check_not_blank(recipe: Recipe) -> None:
    """Names and folders are not blank."""
    for key in NOT_BLANK:
        value = operator.attrgetter(key)(recipe)
        if not value.strip():
            raise_rule_error(key, value, requirement="not be blank")


# First of all rules: the others divide by these numbers.
BOUND_RULES = (check_bounds, check_not_blank)
