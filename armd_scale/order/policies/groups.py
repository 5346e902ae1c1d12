"""Policies `groups` and `permuted_groups`: groups of tokens, contiguous or of any positions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt64

from armd_scale.order.policies.base import (
    OrderPolicy,
    SpecForm,
    Violation,
    choose_one,
    format_numbers,
    size_violations,
)
from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class _GroupPolicy(OrderPolicy):
    """The recipe keys and the curriculum that both kinds of groups share."""

    sizes: tuple[int, ...]
    """Group sizes, in tokens."""
    ramp_end: int = 0
    """> 0: sizes in turn, in equal spans up to this step; 0: one size drawn per sample."""

    def at_step(self, step: int) -> OrderPolicy:
        """Return all sizes, for a draw per sample; or the size whose span of the ramp is `step`."""
        if self.ramp_end == 0:
            return self
        # Sizes 1, 2, 4 with ramp_end 300: size 1 in steps 0-99, 2 in 100-199, and 4 from 200 on.
        # The `min` is for the steps after the ramp.
        span = min(step * len(self.sizes) // self.ramp_end, len(self.sizes) - 1)
        return replace(self, sizes=(self.sizes[span],), ramp_end=0)

    def choose(self, rng: KeyedRng) -> OrderPolicy:
        """Draw the group size."""
        return replace(self, sizes=choose_one(self.sizes, rng))

    def violations(self, seq_length: int) -> Iterator[Violation]:
        """Groups hold at least one and at most all targets; a ramp does not end before step 0."""
        yield from size_violations("sizes", self.sizes, seq_length)
        if self.ramp_end < 0:
            hint = "0 draws a size per sample"
            yield Violation(key="ramp_end", value=self.ramp_end, requirement="be >= 0", hint=hint)

    @classmethod
    def spec_forms(cls) -> tuple[SpecForm, ...]:
        """Return `POLICY:s[,s..]`."""

        def build(sizes: tuple[int, ...]) -> OrderPolicy:
            return cls(sizes=sizes)

        return (SpecForm(name=cls.policy, build=build, arity="many", letter="s"),)

    def __str__(self) -> str:
        """Return `POLICY:s[,s..]`."""
        return f"{self.policy}:{format_numbers(self.sizes)}"


@dataclass(frozen=True, kw_only=True)
class Groups(_GroupPolicy):
    """Contiguous groups in text order (A3, arXiv 2601.13228)."""

    policy: ClassVar[str] = "groups"

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return contiguous groups of the chosen size."""
        (size,) = self.sizes
        return group_blocks(num_targets, size)

    @property
    def is_left_to_right(self) -> bool:
        """Whether groups only ever hold one token."""
        return set(self.sizes) == {1}

    @property
    def can_be_left_to_right(self) -> bool:
        """Whether groups of one token can be drawn."""
        return 1 in self.sizes


@dataclass(frozen=True, kw_only=True)
class PermutedGroups(_GroupPolicy):
    """A random permutation cut into groups (A3, arXiv 2601.13228)."""

    policy: ClassVar[str] = "permuted_groups"

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return a uniform permutation cut into groups of the chosen size."""
        (size,) = self.sizes
        return permuted_group_blocks(rng.next_uint64(num_targets), size)


def group_blocks(num_targets: int, size: int) -> Int[np.ndarray, " n"]:
    """Return contiguous groups of `size` tokens in text order; the last may be smaller."""
    return np.arange(num_targets) // size + 1


def permuted_group_blocks(
    random_bits: UInt64[np.ndarray, " n"], size: int
) -> Int[np.ndarray, " n"]:
    """Return a uniform permutation cut into groups of `size`; size 1 is the permutation itself.

    Args:
        random_bits: one random integer per target; their ranks are the permutation.
        size: tokens per group; the last group may be smaller.
    """
    block = np.empty(len(random_bits), dtype=np.int64)
    # Ranks 1 and 2 are group 1, and so on: bits 50, 10, 40, 20, 30 with size 2 give blocks 3, 1, 2,
    # 1, 2.
    block[np.argsort(random_bits, kind="stable")] = group_blocks(len(random_bits), size)
    return block
