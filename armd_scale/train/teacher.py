"""A frozen parent: what the trained network must go on saying left to right.

Fine-tuning on other orders pulls the left-to-right path along. So the loss gains

    weight * mean of KL( parent(. | x_<p) || model(. | x_<p) )

over the targets p of those samples of the global batch whose drawn order is the text's, one token
a block: there both see the same tokens, and a parent that reads left to right has something to say.
The mean is over these targets alone, so the weight means the same whatever share of the samples
they are; a step without any has no such term, and the parent does not run.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint, load_network, open_checkpoint
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.data.batch import ArmdBatch
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import TeacherOutput


class Teacher:
    """A network that is read and never trained.

    It is split over the tensor-parallel group as the trained network is, so that both hold the same
    columns of the logits, and whole otherwise, under ZeRO 3 too.

    Args:
        network: the parent, on the device of the trained network.
        weight: factor of the divergence in the loss.
    """

    def __init__(self, network: ArmdModel, weight: float) -> None:
        self._network = network.requires_grad_(False)
        self.weight = weight

    @torch.no_grad()
    def reference(self, batch: ArmdBatch) -> TeacherOutput:
        """What the parent says of the left-to-right samples of a batch; it runs on no other."""
        samples, part = batch.left_to_right_subset()
        if len(part.tokens):
            rows = self._network.final_hidden(self._network.forward_layers(part))
        else:
            width = self._network.model.hidden
            rows = self._network.final_norm.weight.new_empty(batch.labels.shape[1], 0, width)
        return TeacherOutput(samples, rows, self._network.local_logits)


def open_teacher(recipe: ResolvedRecipe) -> Checkpoint | None:
    """The checkpoint of `train.distillation`; None where there is none to hold to.

    Raises:
        CheckpointError: it is damaged, or does not speak the model's language.
    """
    if recipe.train.distillation is None:
        return None
    checkpoint = open_checkpoint(recipe.train.distillation.checkpoint)
    theirs, mine = checkpoint.recipe.model, recipe.model
    if theirs.vocab_size != mine.vocab_size:
        raise CheckpointError(
            f"train.distillation must have the model's vocabulary of {mine.vocab_size} tokens, and "
            f"{checkpoint.folder} has {theirs.vocab_size}: choose the model's own ancestor"
        )
    num_positions, needed = theirs.position_table_rows, recipe.data.seq_length + 1
    if theirs.position_embedding == "learned_absolute" and num_positions < needed:
        raise CheckpointError(
            f"train.distillation must know data.seq_length + 1 = {needed} positions, and "
            f"{checkpoint.folder} knows {num_positions}: shorten the samples or choose another parent"
        )
    return checkpoint


def load_teacher(
    recipe: ResolvedRecipe,
    checkpoint: Checkpoint | None,
    *,
    groups: ProcessGroupCollection,
    device: torch.device,
) -> Teacher | None:
    """The network of `open_parent`, in the type that the run computes in."""
    if recipe.train.distillation is None or checkpoint is None:
        return None
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    network = load_network(checkpoint, groups=groups, dtype=dtype, device=device)
    return Teacher(network, recipe.train.distillation.weight)
