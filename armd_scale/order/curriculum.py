"""Which order a training step uses: the recipe's order with its step-dependent amounts filled in.

Steps count from 0, and always from the start of the run, so that a stage can be moved in a recipe
without changing what its own ramp does.
"""

from armd_scale.config.schema import (
    DiffusionConfig,
    GroupsConfig,
    LeftToRightConfig,
    MixtureConfig,
    OrderConfig,
    PermutedGroupsConfig,
    ProgressiveConfig,
    RandomConfig,
    StagesConfig,
    StridedConfig,
)
from armd_scale.order.policies import (
    Diffusion,
    Groups,
    LeftToRight,
    Mixture,
    Order,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
)


def order_at_step(config: OrderConfig, step: int) -> Order:
    """The order of the samples of optimizer step `step` (the first is 0)."""
    match config:
        case LeftToRightConfig():
            return LeftToRight()
        case ProgressiveConfig():
            return _progressive_at(config, step)
        case StridedConfig():
            return Strided(config.streams, config.joint)
        case RandomConfig():
            return RandomPermutation()
        case GroupsConfig():
            return Groups(_sizes_at(config, step))
        case PermutedGroupsConfig():
            return PermutedGroups(_sizes_at(config, step))
        case DiffusionConfig():
            return Diffusion(config.num_timesteps)
        case MixtureConfig():
            weights = tuple(part.weight for part in config.components)
            return Mixture(
                weights, tuple(order_at_step(part.order, step) for part in config.components)
            )
        case StagesConfig():
            return _stage_at(config, step)


def _progressive_at(config: ProgressiveConfig, step: int) -> Order:
    """Text order, then 1 shuffled token growing in a straight line to rho at `ramp_end`.

    Source: arXiv 2601.16971, the progressive permutation curriculum (i_AR, i_perm, rho). Shuffling
    one token moves nothing; the paper's ramp starts there, and so does this one.
    """
    if step < config.ar_steps:
        return LeftToRight()
    if step >= config.ramp_end:
        return Progressive(config.rho)
    done, span = step - config.ar_steps, config.ramp_end - config.ar_steps
    return Progressive(1 + (config.rho - 1) * done // span)


def _sizes_at(config: GroupsConfig | PermutedGroupsConfig, step: int) -> tuple[int, ...]:
    """All sizes, for a draw per sample; or the one whose span of the ramp `step` lies in."""
    if config.ramp_end == 0:
        return config.sizes
    turn = min(step * len(config.sizes) // config.ramp_end, len(config.sizes) - 1)
    return (config.sizes[turn],)


def _stage_at(config: StagesConfig, step: int) -> Order:
    """The order of the first stage that has not ended; the last one has no end."""
    for stage in config.stages:
        if stage.until_step is None or step < stage.until_step:
            return order_at_step(stage.order, step)
    return order_at_step(config.stages[-1].order, step)
