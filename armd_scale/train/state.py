"""All that survives a restart, besides weights and optimizer."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Where a run stands.

    The learning rate, the order of samples and the generation orders are functions of these numbers
    and the recipe, so none of them, and no random state, is kept.
    """

    step: int = 0
    """Optimizer steps done."""
    consumed_samples: int = 0
    """Samples of all ranks that those steps took."""
    consumed_tokens: int = 0
    """Targets in those samples."""
    skipped_steps: int = 0
    """Of those steps, how many have not changed the weights, or were undone."""
    consecutive_bad_steps: int = 0
    """Of those, how many came last, one after another."""
    rollbacks: int = 0
    """How often the run has gone back to a checkpoint."""
    recent_losses: tuple[float, ...] = ()
    """The latest ones, where spikes are looked for."""

    @property
    def updates(self) -> int:
        """How often the weights have changed."""
        return self.step - self.skipped_steps

    def advance(self, *, samples: int, tokens: int) -> "TrainState":
        """The state after one more step."""
        return replace(
            self,
            step=self.step + 1,
            consumed_samples=self.consumed_samples + samples,
            consumed_tokens=self.consumed_tokens + tokens,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """From `to_json`'s values."""
        return cls(**{**values, "losses": tuple(values.get("losses", ()))})
