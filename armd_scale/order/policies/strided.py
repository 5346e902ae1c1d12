"""Policy `strided`: contiguous segments of the text, generated in parallel."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

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
class Strided(OrderPolicy):
    """Contiguous segments generated in parallel (ARMD, arXiv 2601.16971)."""

    policy: ClassVar[str] = "strided"
    streams: tuple[int, ...] = (1, 2, 4)
    """Numbers of parallel streams, one drawn per sample."""
    joint: bool = True
    """true: the tokens at one offset are one block, as decoding with `--streams` samples them;
    false: the same slots, one token per block, which is the exact chain rule."""

    def choose(self, rng: KeyedRng) -> OrderPolicy:
        """Draw the number of streams."""
        return Strided(streams=choose_one(self.streams, rng), joint=self.joint)

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return the blocks of the chosen number of streams."""
        (streams,) = self.streams
        return strided_blocks(num_targets, streams, joint=self.joint)

    @property
    def is_left_to_right(self) -> bool:
        """Whether there is only ever one stream."""
        return set(self.streams) == {1}

    @property
    def can_be_left_to_right(self) -> bool:
        """Whether one stream can be drawn."""
        return 1 in self.streams

    def violations(self, seq_length: int) -> Iterator[Violation]:
        """There are at least one and at most as many streams as targets."""
        return size_violations("streams", self.streams, seq_length)

    @classmethod
    def spec_forms(cls) -> tuple[SpecForm, ...]:
        """Return `strided:S` (joint, as `--streams S` samples) and `strided-ar:S` (chain rule)."""
        return (
            SpecForm(
                name="strided",
                build=lambda streams: cls(streams=streams, joint=True),
                arity="many",
                letter="S",
            ),
            SpecForm(
                name="strided-ar",
                build=lambda streams: cls(streams=streams, joint=False),
                arity="many",
                letter="S",
            ),
        )

    def __str__(self) -> str:
        """Return `strided:S` or `strided-ar:S`."""
        name = "strided" if self.joint else "strided-ar"
        return f"{name}:{format_numbers(self.streams)}"


def strided_blocks(num_targets: int, streams: int, *, joint: bool) -> Int[np.ndarray, " n"]:
    """Return contiguous segments generated in parallel, one token of each per round.

    The heads of the segments come first, one block each, from left to right: every later token can
    then attend to its left neighbor. After that, each round generates the tokens at one offset of
    all segments, as one block if `joint`, else one after another.

    Segments are ceil(n / streams) long. Where streams does not divide n, the last segment is
    shorter and its rounds end earlier; where even that leaves a segment empty, as 5 targets in 4
    streams do, there are fewer streams.

    Example: n = 8, streams = 2: heads 1 and 5, then {2, 6}, {3, 7}, {4, 8}.
    """
    target = np.arange(num_targets)
    # Rounded up. 7 targets in 3 streams: segments of 3, 3 and 1, blocks 1 4 5 | 2 4 5 | 3. 5
    # targets in 4 streams: segments of 2, 2 and 1, blocks 1 4 | 2 4 | 3.
    length = -(-num_targets // min(streams, num_targets))
    num_segments = -(-num_targets // length)
    segment, offset = target // length, target % length
    if joint:
        # The heads take blocks 1..num_segments; offset o >= 1 takes block num_segments + o.
        return np.where(offset == 0, segment, num_segments + offset - 1) + 1
    # Tokens generated before those at offset o: o of each full segment, and of the last one no more
    # than it has. Within an offset, segments follow one another.
    # The same 7 targets without joint blocks: 1 4 6 | 2 5 7 | 3.
    last_length = num_targets - (num_segments - 1) * length
    num_before = (num_segments - 1) * offset + np.minimum(offset, last_length)
    return num_before + segment + 1
