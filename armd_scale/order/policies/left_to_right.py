"""Policy `l2r`: text order, one token per block."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from armd_scale.order.policies.base import OrderPolicy, SpecForm
from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class LeftToRight(OrderPolicy):
    """Text order, one token per block: the auto-regressive order."""

    policy: ClassVar[str] = "l2r"

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return 1, 2, 3, ..."""
        return left_to_right_blocks(num_targets)

    @property
    def is_left_to_right(self) -> bool:
        """True."""
        return True

    @property
    def can_be_left_to_right(self) -> bool:
        """True."""
        return True

    @classmethod
    def spec_forms(cls) -> tuple[SpecForm, ...]:
        """Return `l2r`."""
        return (SpecForm(name="l2r", build=lambda _: cls()),)


def left_to_right_blocks(num_targets: int) -> Int[np.ndarray, " num_targets"]:
    """Return 1, 2, 3, ...: text order, one token per block."""
    return np.arange(1, num_targets + 1)
