"""Policy `diffusion`: masking times drawn from a noise schedule."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt64

from armd_scale.order.policies.base import OrderPolicy, SpecForm, Violation
from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class Diffusion(OrderPolicy):
    """Masking times drawn from a linear noise schedule; tokens of equal time are one block."""

    policy: ClassVar[str] = "diffusion"
    num_timesteps: int
    """Number of masking times."""

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return the blocks of drawn masking times."""
        return diffusion_blocks(rng.next_uint64(num_targets), self.num_timesteps)

    def violations(self, seq_length: int) -> Iterator[Violation]:
        """There is at least one masking time."""
        if self.num_timesteps < 1:
            value = self.num_timesteps
            yield Violation(key="num_timesteps", value=value, requirement="be >= 1")

    @classmethod
    def spec_forms(cls) -> tuple[SpecForm, ...]:
        """Return `diffusion:T`."""

        def build(numbers: tuple[int, ...]) -> OrderPolicy:
            return cls(num_timesteps=numbers[0])

        return (SpecForm(name="diffusion", build=build, arity="one", letter="T"),)

    def __str__(self) -> str:
        """Return `diffusion:T`."""
        return f"diffusion:{self.num_timesteps}"


def diffusion_blocks(
    random_bits: UInt64[np.ndarray, " n"], num_timesteps: int
) -> Int[np.ndarray, " n"]:
    """Draw masking times and return their order: what is masked last is generated first.

    With the linear schedule alpha_t = 1 - t / T a token is masked at t with probability
    alpha_{t-1} - alpha_t = 1 / T, so its time is uniform on 1..T. Times that no token drew make no
    block.
    """
    # Multiply-shift on the upper 32 bits: exact integer arithmetic, biased by less than T / 2^32.
    time = ((random_bits >> np.uint64(32)) * np.uint64(num_timesteps)) >> np.uint64(32)
    # The index among the times that were drawn, which closes the gaps of the others. Reversed,
    # since the latest time is block 1: times 0, 3, 1, 0, 3 become blocks 3, 1, 2, 3, 1.
    _, rank = np.unique(time, return_inverse=True)
    return rank.max() + 1 - rank
