"""What an order policy is: recipe keys, the order of a step, the blocks of a document, a SPEC.

A policy is a frozen dataclass whose fields are its recipe keys. Three calls turn it into blocks:

    policy.at_step(step)      a policy without step-dependent amounts
        .choose(rng)          the order of one sample, where the policy leaves a choice
        .blocks(n, rng)       blocks 1..T of the n targets of a document

Each returns a policy of the same family, so that a policy without ramps or choices returns itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A recipe value that breaks a rule of its policy; config.rules turns it into an error."""

    key: str
    """Key below the policy, such as `rho` or `sizes.0`."""
    value: object
    requirement: str
    """Completes "KEY must ...", such as "be >= 1"."""
    hint: str = ""
    """What to do about it, where that does not follow from the requirement."""


@dataclass(frozen=True, kw_only=True)
class SpecForm:
    """One way to write a policy as a SPEC: a name and, after a colon, whole numbers >= 1."""

    name: str
    build: "Callable[[tuple[int, ...]], OrderPolicy]"
    """From the numbers to the policy."""
    arity: Literal["none", "one", "many"] = "none"
    """How many numbers the form takes; `many` is a comma-separated list of at least one."""
    letter: str = ""
    """Letter that stands for a number in help texts."""

    @property
    def syntax(self) -> str:
        """How the form is written, such as `strided:S[,S..]`."""
        numbers = {
            "none": "",
            "one": f":{self.letter}",
            "many": f":{self.letter}[,{self.letter}..]",
        }
        return self.name + numbers[self.arity]


class OrderPolicy(ABC):
    """An order in which the tokens of a sample are predicted.

    Subclasses are frozen keyword-only dataclasses and override what differs from a policy that
    is the same at every step, leaves no choice per sample and is never left to right.
    """

    policy: ClassVar[str]
    """Value of the recipe key `policy` that selects the class."""

    def at_step(self, step: int) -> "OrderPolicy":
        """Return the policy of optimizer step `step`, with step-dependent amounts filled in.

        Steps count from 0 and from the start of the run, also inside a stage, so that moving a
        stage in a recipe does not change its ramp.
        """
        return self

    def choose(self, rng: KeyedRng) -> "OrderPolicy":
        """Return the order of one sample, drawing what the policy leaves to chance per sample."""
        return self

    @abstractmethod
    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Return the blocks of a document's targets in text order: 1..T without gaps.

        Called on what `choose` returned. The document's first token, which is given, is not among
        the targets.
        """

    @property
    def is_left_to_right(self) -> bool:
        """Whether every draw is text order in singleton blocks; asked of one step's policy."""
        return False

    @property
    def can_be_left_to_right(self) -> bool:
        """Whether some sample of some step is in text order in singleton blocks."""
        return False

    def children(self) -> "Iterator[tuple[str, OrderPolicy]]":
        """Yield the policies inside this one, each with its path below this one's keys."""
        yield from ()

    def violations(self, seq_length: int) -> Iterator[Violation]:
        """Yield the rules that this policy's own keys break, in windows of `seq_length` targets."""
        yield from ()

    @classmethod
    def spec_forms(cls) -> tuple[SpecForm, ...]:
        """Return the SPECs that name this policy; none for one that changes with the step."""
        return ()

    def __str__(self) -> str:
        """Return the SPEC, which `order.spec.parse_spec` reads back; asked of one step's policy."""
        return self.policy


def format_numbers(numbers: tuple[int, ...]) -> str:
    """Return the list of numbers of a SPEC, such as `1,2,4`."""
    return ",".join(str(number) for number in numbers)


def choose_one(numbers: tuple[int, ...], rng: KeyedRng) -> tuple[int]:
    """Draw one of several numbers uniformly; a single one costs no random number."""
    # A tuple again, so that the chosen order is a policy with the same keys: `streams: (2,)`.
    return (numbers[rng.randint(len(numbers)) if len(numbers) > 1 else 0],)


def size_violations(key: str, sizes: tuple[int, ...], seq_length: int) -> Iterator[Violation]:
    """Yield what is wrong with a list of stream or group sizes: each must be in 1..seq_length."""
    if not sizes:
        yield Violation(key=key, value=sizes, requirement="hold at least one number")
    # The bound is the window's length also with packed documents: in a shorter document, streams
    # are reduced to its number of targets, and a group ends with it.
    for index, size in enumerate(sizes):
        if not 1 <= size <= seq_length:
            requirement = f"be between 1 and data.seq_length = {seq_length}"
            yield Violation(key=f"{key}.{index}", value=size, requirement=requirement)
