"""Former names of recipe keys and values: an old recipe is refused with the present name."""

from collections.abc import Iterable

RENAMED_KEYS: dict[str, tuple[str, ...]] = {
    # model
    "gap_rows": ("max_anchor_gap",),
    "positions": ("position_embedding",),
    "rope_base": ("rope_theta",),
    "rotary_fraction": ("partial_rotary_factor",),
    "norm_epsilon": ("norm_eps",),
    # model.rope_scaling
    "kind": ("rope_type",),
    "low_frequency_factor": ("low_freq_factor",),
    "high_frequency_factor": ("high_freq_factor",),
    "original_max_positions": ("original_max_position_embeddings",),
    # optim
    "epsilon": ("eps",),
    # train
    "parent": ("distillation",),
    "hang_seconds": ("hang_timeout_seconds",),
    "guard": ("loss_guard",),
    # train.loss_guard
    "window": ("window_steps",),
    "patience": ("max_consecutive_bad_steps",),
    "rollbacks": ("max_rollbacks",),
    # order
    "times": ("num_timesteps",),
    "parts": ("components", "stages"),
    "until": ("until_step",),
}
"""From a former key to its present names; the one that its section has is meant."""

RENAMED_VALUES: dict[tuple[str, str], str] = {
    ("position_embedding", "rotary"): "rope",
    ("position_embedding", "learned"): "learned_absolute",
}
"""From a present key and a former value of it to the present value."""


def present_key(key: object, known: Iterable[str]) -> str | None:
    """Return the present name of a former key among the known keys of its section, if any."""
    names = RENAMED_KEYS.get(key, ()) if isinstance(key, str) else ()
    return next((name for name in names if name in set(known)), None)
