"""Policy `random`: a uniform permutation, one token per block."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from armd_scale.order.policies.base import OrderPolicy, SpecForm
from armd_scale.order.policies.groups import permuted_group_blocks
from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class RandomPermutation(OrderPolicy):
    """A uniform permutation, one token per block."""

    policy: ClassVar[str] = "random"

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return a uniform permutation of 1..num_targets."""
        return permuted_group_blocks(rng.next_uint64(num_targets), 1)

    @classmethod
    def spec_forms(cls) -> tuple[SpecForm, ...]:
        """Return `random`."""
        return (SpecForm(name="random", build=lambda _: cls()),)
