"""The model chunks of one rank as a single module; several under the interleaved schedule."""

from collections.abc import Sequence

from torch import Tensor, nn

from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import LossSpec
from armd_scale.model.param_names import EMBEDDING, parameters_by_name


class ModelChunks(nn.Module):
    """This rank's chunks of the network as one module, which a DeepSpeed engine requires.

    Args:
        models: the chunks, in the order of data flow.
    """

    def __init__(self, models: Sequence[ArmdModel]) -> None:
        super().__init__()
        self.models = list(models)
        self.parts = nn.ModuleList(self.models)  # registers their parameters
        self.groups = self.models[0].groups
        self.transformer_config = self.models[0].config

    def forward(
        self, batch: ArmdBatch, chunk_index: int = 0, loss_spec: LossSpec | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the output of one chunk, as `ArmdModel.forward` does."""
        return self.models[chunk_index](batch, loss_spec)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Return all parameters by their names in the whole network."""
        return parameters_by_name(*self.models)

    @property
    def tied_across_stages(self) -> str | None:
        """The embedding's name if embedding and LM head share it on two stages, else None."""
        is_tied = self.models[0].model.tie_embeddings and self.groups.pp.size() > 1
        return EMBEDDING if is_tied else None
