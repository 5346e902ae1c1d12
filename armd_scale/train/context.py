"""What all parts of a run share: the recipe, the job, and where they report to."""

from dataclasses import dataclass, field

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.fault.run_lock import RunLock
from armd_scale.fault.watchdog import Watchdog
from armd_scale.metrics.events import EventLog
from armd_scale.parallel.environment import DistributedEnv


@dataclass(frozen=True)
class TrainingContext:
    """The parts of a run that a rollback keeps; everything else is built from it."""

    recipe: ResolvedRecipe
    environment: DistributedEnv
    groups: ProcessGroupCollection
    watchdog: Watchdog = field(default_factory=Watchdog)
    events: EventLog = field(default_factory=EventLog)
    lock: RunLock | None = None
    """The lock of the run folder, on rank 0."""

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.environment.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations in forward and backward."""
        return compute_dtype(self.recipe)


def compute_dtype(recipe: ResolvedRecipe) -> torch.dtype:
    """Type of weights and activations in forward and backward."""
    return torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
