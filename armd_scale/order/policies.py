"""The orders in which the tokens of a sample can be generated, and their one-line names (SPECs).

An order here is resolved: nothing in it depends on the step any more (`curriculum` does that).
What is left to chance is drawn for each sample by `draw`. `str(order)` is the SPEC that commands
take and reports print, and `parse_spec` reads it back:

    l2r | progressive:m | strided:S[,S..] | strided-joint:S[,S..] | random | groups:s[,s..]
    permuted_groups:s[,s..] | diffusion:T | mixture(0.5*l2r+0.5*strided:2)
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from armd_scale.errors import OrderError

SPEC_SYNTAX = {
    "l2r": "l2r",
    "progressive": "progressive:m",
    "strided": "strided:S[,S..]",
    "strided-joint": "strided-joint:S[,S..]",
    "random": "random",
    "groups": "groups:s[,s..]",
    "permuted_groups": "permuted_groups:s[,s..]",
    "diffusion": "diffusion:T",
    "mixture": "mixture(w*ORDER+w*ORDER..)",
}


@dataclass(frozen=True)
class LeftToRight:
    """Text order, one token a block: the auto-regressive order."""

    def __str__(self) -> str:
        return "l2r"


@dataclass(frozen=True)
class Progressive:
    """Text order in which `shuffled` tokens of each document exchange places (arXiv 2601.16971)."""

    num_shuffled: int

    def __post_init__(self) -> None:
        _require_positive(self, (self.num_shuffled,))

    def __str__(self) -> str:
        return f"progressive:{self.num_shuffled}"


@dataclass(frozen=True)
class Strided:
    """Contiguous segments generated side by side, their number drawn from `streams` per sample.

    `joint` tokens at one offset are one block (arXiv 2601.16971); otherwise they follow one another
    in the same slots, each seeing the ones before: the exact chain rule.
    """

    streams: tuple[int, ...]
    joint: bool

    def __post_init__(self) -> None:
        _require_positive(self, self.streams)

    def __str__(self) -> str:
        return f"{'strided-joint' if self.joint else 'strided'}:{_listed(self.streams)}"


@dataclass(frozen=True)
class RandomPermutation:
    """A uniform permutation, one token a block."""

    def __str__(self) -> str:
        return "random"


@dataclass(frozen=True)
class Groups:
    """Contiguous groups in text order, their size drawn from `sizes` per sample (A3)."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        _require_positive(self, self.sizes)

    def __str__(self) -> str:
        return f"groups:{_listed(self.sizes)}"


@dataclass(frozen=True)
class PermutedGroups:
    """A uniform permutation cut into groups, their size drawn from `sizes` per sample (A3)."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        _require_positive(self, self.sizes)

    def __str__(self) -> str:
        return f"permuted_groups:{_listed(self.sizes)}"


@dataclass(frozen=True)
class Diffusion:
    """Masking times drawn from a linear schedule of `times` steps; equal times share a block."""

    times: int

    def __post_init__(self) -> None:
        _require_positive(self, (self.times,))

    def __str__(self) -> str:
        return f"diffusion:{self.times}"


@dataclass(frozen=True)
class Mixture:
    """One of `orders` per sample, drawn in proportion to `weights`."""

    weights: tuple[float, ...]
    orders: tuple["Order", ...]

    def __post_init__(self) -> None:
        sound = all(math.isfinite(weight) and weight > 0 for weight in self.weights)
        if not sound or not self.orders or len(self.weights) != len(self.orders):
            raise OrderError(
                f"a mixture must have one weight above 0 for each order, got {self}: "
                "write mixture(0.5*l2r+0.5*strided:2)"
            )

    def __str__(self) -> str:
        pairs = zip(self.weights, self.orders, strict=False)
        return f"mixture({'+'.join(f'{_number(weight)}*{order}' for weight, order in pairs)})"


Order: TypeAlias = (
    LeftToRight
    | Progressive
    | Strided
    | RandomPermutation
    | Groups
    | PermutedGroups
    | Diffusion
    | Mixture
)

_AMOUNTS: dict[str, Callable[[tuple[int, ...]], Order]] = {
    "strided": lambda amounts: Strided(amounts, joint=False),
    "strided-joint": lambda amounts: Strided(amounts, joint=True),
    "groups": Groups,
    "permuted_groups": PermutedGroups,
}
_AMOUNT: dict[str, Callable[[int], Order]] = {"progressive": Progressive, "diffusion": Diffusion}
_PLAIN: dict[str, Callable[[], Order]] = {"l2r": LeftToRight, "random": RandomPermutation}


def parse_spec(text: str) -> Order:
    """The order that a SPEC names: `parse_spec(str(order)) == order`.

    Raises:
        OrderError: an unknown name (the nearest known one is offered) or an amount that is none.
    """
    spec = text.strip()
    if spec.startswith("mixture(") and spec.endswith(")"):
        return _parse_mixture(spec)
    name, colon, amounts = spec.partition(":")
    if name in _PLAIN and not colon:
        return _PLAIN[name]()
    if name in _AMOUNTS:
        return _AMOUNTS[name](_parse_amounts(spec, name, amounts))
    if name in _AMOUNT:
        numbers = _parse_amounts(spec, name, amounts)
        if len(numbers) == 1:
            return _AMOUNT[name](numbers[0])
    raise OrderError(_unknown(spec, name))


def _parse_amounts(spec: str, name: str, amounts: str) -> tuple[int, ...]:
    parts = amounts.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise OrderError(
            f"order {name} needs whole numbers of at least 1, got '{spec}': write {SPEC_SYNTAX[name]}"
        )
    return tuple(int(part) for part in parts)


def _parse_mixture(spec: str) -> Mixture:
    weights, orders = [], []
    for part in _split_outside_brackets(spec.removeprefix("mixture(").removesuffix(")")):
        weight, star, order = part.partition("*")
        try:
            weights.append(float(weight))
        except ValueError:
            star = ""
        if not star:
            raise OrderError(
                f"a part of a mixture must be a weight times an order, got '{part}' in '{spec}': "
                "write mixture(0.5*l2r+0.5*strided:2)"
            )
        orders.append(parse_spec(order))
    return Mixture(tuple(weights), tuple(orders))


def _split_outside_brackets(text: str) -> list[str]:
    """Cuts at each `+` that stands in no bracket, so that mixtures may nest."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _unknown(spec: str, name: str) -> str:
    near = difflib.get_close_matches(name, SPEC_SYNTAX, n=1, cutoff=0.0)[0]
    return (
        f"an order must be one of {', '.join(SPEC_SYNTAX.values())}, got '{spec}': "
        f"the nearest is {SPEC_SYNTAX[near]}"
    )


def _require_positive(order: Order, amounts: tuple[int, ...]) -> None:
    if not amounts or min(amounts) < 1:
        raise OrderError(
            f"the amounts of an order must be whole numbers of at least 1, got '{order}': "
            "give it at least one, such as strided:2"
        )


def _listed(amounts: tuple[int, ...]) -> str:
    return ",".join(str(amount) for amount in amounts)


def _number(weight: float) -> str:
    # The shortest text that reads back equal; `1e+16` would be cut at its plus.
    return repr(float(weight)).removesuffix(".0").replace("+", "")
