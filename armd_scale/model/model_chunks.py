"""The parts of the network that one process holds; several under the interleaved schedule."""

from collections.abc import Sequence

from torch import Tensor, nn

from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import LossSpec
from armd_scale.model.param_names import EMBEDDING, parameters_by_name


class ModelChunks(nn.Module):
    """This process's parts of the network as one module, for an engine that wants one.

    Args:
        models: the parts, in the order of data flow.
    """

    def __init__(self, models: Sequence[ArmdModel]) -> None:
        super().__init__()
        self.models = list(models)
        self.parts = nn.ModuleList(self.models)
        self.groups = self.models[0].groups
        self.transformer_config = self.models[0].config

    def forward(
        self, batch: ArmdBatch, chunk_index: int = 0, objective: LossSpec | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The output of one part: rows for the next stage; what targets cost in the last one."""
        return self.models[chunk_index](batch, objective)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All parameters by their names in the whole network."""
        return parameters_by_name(*self.models)

    @property
    def tied_across_stages(self) -> str | None:
        """The embedding's name, where embedding and head are one tensor on two stages."""
        tied = self.models[0].model.tie_embeddings and self.groups.pp.size() > 1
        return EMBEDDING if tied else None
