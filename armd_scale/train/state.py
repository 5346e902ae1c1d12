"""The training state: all that survives a restart besides weights and optimizer."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from armd_scale.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Counters that say how far a run is.

    The learning rate, the sample order and the generation orders are functions of these numbers and
    the recipe, so none of them is saved, nor any random number generator.
    """

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    consumed_samples: int = 0
    """Samples that those steps consumed, over all ranks."""
    consumed_tokens: int = 0
    """Targets in those samples."""
    skipped_steps: int = 0
    """Steps whose update was skipped or undone by a rollback."""
    consecutive_bad_steps: int = 0
    """Skipped steps since the last good one."""
    rollbacks: int = 0
    """How often the run has gone back to an earlier checkpoint."""
    recent_losses: tuple[float, ...] = ()
    """Losses of the latest good steps; a spike is measured against their median."""

    @property
    def updates(self) -> int:
        """Optimizer updates that the weights contain."""
        return self.step - self.skipped_steps

    def advance(self, *, samples: int, tokens: int) -> "TrainState":
        """Return the state after one more step."""
        return replace(
            self,
            step=self.step + 1,
            consumed_samples=self.consumed_samples + samples,
            consumed_tokens=self.consumed_tokens + tokens,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Read the values of `to_json`; missing keys get their defaults.

        Raises:
            CheckpointError: there is a key of another format.
        """
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise CheckpointError(
                f"the training state must be of this version's format (unknown: "
                f"{', '.join(unknown)}): start from the weights instead, with model.init_from"
            )
        return cls(**{**values, "recent_losses": tuple(values.get("recent_losses", ()))})
