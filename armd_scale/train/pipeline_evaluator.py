"""The likelihood of a batch under the network in training, whatever its layout."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from armd_scale.data.batch import ArmdBatch
from armd_scale.model.loss_spec import TrainMicroBatch
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.parallel.pipeline.schedule import ScheduledChunk, run_micro_batches


class PipelineEvaluator(nn.Module):
    """Nats per target of a batch, on every process of the pipeline.

    Args:
        network: this process's parts of the network.
        stages: the same parts as the schedule sees them.
    """

    def __init__(self, network: ModelChunks, stages: Sequence[ScheduledChunk]) -> None:
        super().__init__()
        self.network = network
        self._stages = stages

    @torch.no_grad()
    def forward(self, batch: ArmdBatch) -> Float[Tensor, "batch queries"]:
        """Runs the pipeline forward and hands the last stage's output to all of it."""
        groups = self.network.groups
        size = groups.pp.size()
        # The interleaved schedule takes micro-batches by the number of stages; one is wanted.
        lessons = [TrainMicroBatch(batch)] * (size if len(self._stages) > 1 else 1)
        made = run_micro_batches(
            self._stages,
            lessons,
            loss_fn=lambda nll, _: (nll.sum(), nll),
            groups=groups,
            forward_only=True,
        )
        nll = made[0] if made else batch.labels.new_empty(batch.labels.shape, dtype=torch.float32)
        nll = nll.contiguous()
        dist.broadcast(nll, group=groups.pp, group_src=size - 1)
        return nll
