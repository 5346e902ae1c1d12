"""Policy `progressive`: text order in which a growing number of tokens exchange slots."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt64

from armd_scale.order.policies.base import OrderPolicy, SpecForm, Violation
from armd_scale.order.policies.left_to_right import LeftToRight, left_to_right_blocks
from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class Progressive(OrderPolicy):
    """Text order in which a growing number of tokens exchange slots (ARMD, arXiv 2601.16971)."""

    policy: ClassVar[str] = "progressive"
    ar_steps: int
    """Steps of pure text order at the start (the paper's i_AR)."""
    ramp_end: int
    """Step at which the number of shuffled tokens reaches `rho` (the paper's i_perm)."""
    rho: int
    """Largest number of shuffled tokens in a document."""

    @classmethod
    def constant(cls, num_shuffled: int) -> "Progressive":
        """Return the policy that shuffles `num_shuffled` tokens at every step."""
        return cls(ar_steps=0, ramp_end=0, rho=num_shuffled)

    def at_step(self, step: int) -> OrderPolicy:
        """Return text order, then 1 shuffled token growing linearly to `rho` at `ramp_end`.

        Source: the progressive permutation curriculum of arXiv 2601.16971 (i_AR, i_perm, rho). A
        ramp starts at one shuffled token, which moves nothing, as in the paper.
        """
        if step < self.ar_steps:
            return LeftToRight()
        if step >= self.ramp_end:
            return self.constant(self.rho)
        elapsed, span = step - self.ar_steps, self.ramp_end - self.ar_steps
        # With the paper's 9K, 48K and rho 32, one more token is shuffled every 39,000 / 31 = 1258
        # steps.
        return self.constant(1 + (self.rho - 1) * elapsed // span)

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return text order in which `rho` random tokens exchange slots."""
        return progressive_blocks(rng.next_uint64(num_targets), self.rho)

    @property
    def is_left_to_right(self) -> bool:
        """Whether at most one token is shuffled, which moves nothing."""
        return self.rho <= 1

    @property
    def can_be_left_to_right(self) -> bool:
        """Whether there are steps of pure text order at the start, or never any shuffled tokens."""
        return self.ar_steps > 0 or self.is_left_to_right

    def violations(self, seq_length: int) -> Iterator[Violation]:
        """The ramp starts at or after step 0, ends at or after its start, and fits the sample."""
        if self.ar_steps < 0:
            yield Violation(key="ar_steps", value=self.ar_steps, requirement="be >= 0")
        if self.ar_steps > self.ramp_end:
            requirement = f"be <= ramp_end = {self.ramp_end}"
            yield Violation(key="ar_steps", value=self.ar_steps, requirement=requirement)
        if not 1 <= self.rho <= seq_length:
            requirement = f"be between 1 and data.seq_length = {seq_length}"
            yield Violation(key="rho", value=self.rho, requirement=requirement)

    @classmethod
    def spec_forms(cls) -> tuple[SpecForm, ...]:
        """Return `progressive:m`, m the number of shuffled tokens."""

        def build(numbers: tuple[int, ...]) -> OrderPolicy:
            return cls.constant(numbers[0])

        return (SpecForm(name="progressive", build=build, arity="one", letter="m"),)

    def __str__(self) -> str:
        """Return `progressive:m`."""
        return f"progressive:{self.rho}"


def progressive_blocks(
    random_bits: UInt64[np.ndarray, " n"], num_shuffled: int
) -> Int[np.ndarray, " n"]:
    """Return text order in which random tokens exchange their slots by a random permutation.

    Args:
        random_bits: one random integer per target.
        num_shuffled: m, how many tokens take part.
    """
    block = left_to_right_blocks(len(random_bits))
    # The positions of the m smallest integers, listed by integer, decide both things at once: as a
    # set they are the tokens that take part, and their sequence is the permutation.
    drawn = np.argsort(random_bits, kind="stable")[:num_shuffled]
    # Positions 4, 0, 2 drawn out of five: positions 0, 2, 4 get the slots of 4, 0, 2, so the blocks
    # are 5, 2, 1, 4, 3. Each drawn position gives its own slot away, so blocks stay a permutation.
    block[np.sort(drawn)] = drawn + 1
    return block
