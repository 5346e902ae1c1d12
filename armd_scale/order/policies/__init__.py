"""The registry of order policies: recipes, SPECs and pages of documentation are made from it."""

from armd_scale.order.policies.base import OrderPolicy
from armd_scale.order.policies.diffusion import Diffusion
from armd_scale.order.policies.groups import Groups, PermutedGroups
from armd_scale.order.policies.left_to_right import LeftToRight
from armd_scale.order.policies.mixture import Mixture, MixtureComponent
from armd_scale.order.policies.progressive import Progressive
from armd_scale.order.policies.random import RandomPermutation
from armd_scale.order.policies.stages import OrderStage, Stages
from armd_scale.order.policies.strided import Strided

POLICIES: tuple[type[OrderPolicy], ...] = (
    LeftToRight,
    Progressive,
    Strided,
    RandomPermutation,
    Groups,
    PermutedGroups,
    Diffusion,
    Mixture,
    Stages,
)

__all__ = [
    "POLICIES",
    "Diffusion",
    "Groups",
    "LeftToRight",
    "Mixture",
    "MixtureComponent",
    "OrderPolicy",
    "OrderStage",
    "PermutedGroups",
    "Progressive",
    "RandomPermutation",
    "Stages",
    "Strided",
]
