"""Policy `stages`: one policy after another, by optimizer step."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from armd_scale.order.policies.base import OrderPolicy, Violation
from armd_scale.order.rng import KeyedRng


@dataclass(frozen=True, kw_only=True)
class OrderStage:
    """One stage of a sequence of orders, written in YAML as the order's own keys plus its end."""

    until_step: int | None = None
    """First step that no longer belongs to the stage; null in the last stage only, which stays."""
    order: OrderPolicy = field(metadata={"flattened": True})
    """Order of the stage; its own step-dependent amounts count from step 0 of the run."""


@dataclass(frozen=True, kw_only=True)
class Stages(OrderPolicy):
    """One order after another, by step."""

    policy: ClassVar[str] = "stages"
    stages: tuple[OrderStage, ...]
    """Stages with the step at which each ends."""

    def at_step(self, step: int) -> OrderPolicy:
        """Return the order of the first stage that has not ended; the last one never ends."""
        for stage in self.stages:
            if stage.until_step is None or step < stage.until_step:
                return stage.order.at_step(step)
        return self.stages[-1].order.at_step(step)

    def blocks(self, num_targets: int, rng: KeyedRng) -> Int[np.ndarray, " num_targets"]:
        """Never called: `at_step` returns a stage's order."""
        raise AssertionError("call at_step() first: stages have no blocks of their own")

    @property
    def is_left_to_right(self) -> bool:
        """Whether every stage is."""
        return all(stage.order.is_left_to_right for stage in self.stages)

    @property
    def can_be_left_to_right(self) -> bool:
        """Whether some stage can be."""
        return any(stage.order.can_be_left_to_right for stage in self.stages)

    def children(self) -> Iterator[tuple[str, OrderPolicy]]:
        """Yield the stages' orders."""
        for index, stage in enumerate(self.stages):
            yield f"stages.{index}", stage.order

    def violations(self, seq_length: int) -> Iterator[Violation]:
        """Every stage but the last ends, later than the one before; the last one has no end."""
        if not self.stages:
            requirement = "hold at least one order"
            yield Violation(key="stages", value=self.stages, requirement=requirement)
            return
        *ending, last = self.stages
        if last.until_step is not None:
            yield Violation(
                key=f"stages.{len(ending)}.until_step",
                value=last.until_step,
                requirement="be left out of the last stage",
                hint="the last stage lasts until the end of the run",
            )
        previous_end = 0
        for index, stage in enumerate(ending):
            # A stage without an end would hide all that follow it; one that ends no later than the
            # stage before would never run.
            if stage.until_step is None or stage.until_step <= previous_end:
                yield Violation(
                    key=f"stages.{index}.until_step",
                    value=stage.until_step,
                    requirement=f"be a step after {previous_end}",
                    hint="stages end one after another, and only the last one has no end",
                )
                return
            previous_end = stage.until_step
