"""The parts of the network that one process holds; several under the interleaved schedule."""

from collections.abc import Sequence
from typing import Literal

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from armd_scale.config.schema import ModelConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd import ArmdModel
from armd_scale.model.naming import EMBEDDING, parameters_by_name
from armd_scale.parallel.stages import Stage


class Chunks(nn.Module):
    """This process's parts of the network as one module, for an engine that wants one.

    Args:
        stages: which parts, in the order of data flow.
        model: the recipe's model section, `vocab_size` resolved.
        config: megatron-core's configuration.
        groups: the process groups of the layout.
        max_positions: number of positions that a document can have.
        recompute: what the backward pass computes again.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        model: ModelConfig,
        config: TransformerConfig,
        *,
        groups: ProcessGroupCollection,
        max_positions: int,
        recompute: Literal["none", "full", "selective"] = "none",
    ) -> None:
        super().__init__()
        self.groups = groups
        self.models = [
            ArmdModel(
                model,
                config,
                groups=groups,
                max_positions=max_positions,
                recompute=recompute,
                stage=stage,
            )
            for stage in stages
        ]
        self.parts = nn.ModuleList(self.models)
        self.transformer_config = config

    def forward(self, batch: ArmdBatch, part: int = 0) -> Tensor:
        """The output of one part: rows for the next stage, or nats per target in the last one."""
        return self.models[part](batch)

    def by_name(self) -> dict[str, nn.Parameter]:
        """All parameters by their names in the whole network."""
        return parameters_by_name(*self.models)

    @property
    def tied_across_stages(self) -> str | None:
        """The embedding's name, where embedding and head are one tensor on two stages."""
        tied = self.models[0].model.tie_embeddings and self.groups.pp.size() > 1
        return EMBEDDING if tied else None
