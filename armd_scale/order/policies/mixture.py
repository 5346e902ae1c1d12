"""Policy `mixture`: one of several policies, drawn per sample."""

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from armd_scale.order.policies.base import OrderPolicy, Violation
from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """One component of a mixture, written in YAML as the order's own keys plus `weight`."""

    weight: float
    """Share of the samples, relative to the other components."""
    order: OrderPolicy = field(metadata={"flattened": True})
    """Order of those samples."""


@dataclass(frozen=True, kw_only=True)
class Mixture(OrderPolicy):
    """One order drawn per sample, in proportion to weights."""

    policy: ClassVar[str] = "mixture"
    components: tuple[MixtureComponent, ...]
    """Orders with their weights."""

    def at_step(self, step: int) -> OrderPolicy:
        """Return the mixture of the components at this step."""
        components = (
            MixtureComponent(weight=component.weight, order=component.order.at_step(step))
            for component in self.components
        )
        return Mixture(components=tuple(components))

    def choose(self, rng: KeyedRng) -> OrderPolicy:
        """Draw a component, then let it draw its own choices."""
        bounds = list(itertools.accumulate(component.weight for component in self.components))
        # 53 random bits make an exact float64 below 1. Times the sum of the weights it may still
        # round up to that sum, which bisect would place behind the last component: hence min.
        point = rng.randint(2**53) / 2**53 * bounds[-1]
        index = min(bisect.bisect(bounds, point), len(self.components) - 1)
        return self.components[index].order.choose(rng)

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Never called: `choose` returns a component."""
        raise AssertionError("call choose() first: a mixture has no blocks of its own")

    @property
    def is_left_to_right(self) -> bool:
        """Whether every component is."""
        return all(component.order.is_left_to_right for component in self.components)

    @property
    def can_be_left_to_right(self) -> bool:
        """Whether some component can be."""
        return any(component.order.can_be_left_to_right for component in self.components)

    def children(self) -> Iterator[tuple[str, OrderPolicy]]:
        """Yield the components' orders."""
        for index, component in enumerate(self.components):
            yield f"components.{index}", component.order

    def violations(self, seq_length: int) -> Iterator[Violation]:
        """There is at least one component, and every weight is positive."""
        if not self.components:
            requirement = "hold at least one order"
            yield Violation(key="components", value=self.components, requirement=requirement)
        for index, component in enumerate(self.components):
            if component.weight <= 0:
                key, hint = f"components.{index}.weight", "remove the component to leave it out"
                yield Violation(key=key, value=component.weight, requirement="be > 0", hint=hint)

    def __str__(self) -> str:
        """Return `mixture(w*ORDER+w*ORDER..)`, which `order.spec` parses."""
        terms = (f"{_format_weight(c.weight)}*{c.order}" for c in self.components)
        return f"mixture({'+'.join(terms)})"


def _format_weight(weight: float) -> str:
    # The shortest text that reads back equal, without the plus of `1e+16`, which separates terms.
    return repr(float(weight)).removesuffix(".0").replace("+", "")
