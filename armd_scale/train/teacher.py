"""Distillation from a frozen teacher: a KL term on the left-to-right samples.

Fine-tuning on other orders changes the left-to-right predictions as well. To limit that, the loss
gains

    weight * mean of KL( teacher(. | x_<p) || model(. | x_<p) )

over the targets p of those samples of the global batch whose drawn order is left to right with one
token per block: only there do teacher and student condition on the same tokens. The mean is over
these targets alone, so the weight means the same whatever fraction of the samples they are; a step
without any has no such term, and the teacher does not run.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint, load_network, open_checkpoint
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.data.batch import ArmdBatch
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import TeacherOutput
from armd_scale.train.context import compute_dtype


class Teacher:
    """A frozen network whose predictions the trained one is compared with.

    It is split over the tensor-parallel group like the trained network, so that a rank holds the
    same vocabulary columns of both logits. Otherwise it is replicated, also under ZeRO 3: it has no
    gradients and no optimizer state, and ZeRO 3 would gather its weights in every micro-batch.

    Args:
        network: the teacher, on the device of the trained network.
        weight: factor of the KL term in the loss.
    """

    def __init__(self, network: ArmdModel, weight: float) -> None:
        self._network = network.requires_grad_(False)
        self.weight = weight

    @torch.no_grad()
    def reference(self, batch: ArmdBatch) -> TeacherOutput:
        """Run the teacher on the left-to-right samples of a batch; on no others."""
        sample_mask, subset = batch.left_to_right_subset()
        if len(subset.tokens):
            rows = self._network.final_hidden(self._network.forward_layers(subset))
        else:
            # Empty rows instead of None: the loss then has two terms in every micro-batch.
            width = self._network.model.hidden
            rows = self._network.final_norm.weight.new_empty(batch.labels.shape[1], 0, width)
        return TeacherOutput(sample_mask, rows, self._network.local_logits)


def open_teacher(recipe: ResolvedRecipe) -> Checkpoint | None:
    """Open the checkpoint of `train.distillation`; None if the recipe has no teacher.

    Raises:
        CheckpointError: it is damaged, has a different vocabulary or too few positions.
    """
    if recipe.train.distillation is None:
        return None
    checkpoint = open_checkpoint(recipe.train.distillation.checkpoint)
    teacher, student = checkpoint.recipe.model, recipe.model
    if teacher.vocab_size != student.vocab_size:
        raise CheckpointError(
            f"the teacher of train.distillation must have the model's vocabulary of "
            f"{student.vocab_size} tokens ({checkpoint.folder} has {teacher.vocab_size}): choose a "
            "checkpoint with the same tokenizer"
        )
    num_positions, needed = teacher.position_table_rows, recipe.data.seq_length + 1
    if teacher.position_embedding == "learned_absolute" and num_positions < needed:
        raise CheckpointError(
            f"the teacher of train.distillation must have data.seq_length + 1 = {needed} positions "
            f"({checkpoint.folder} has {num_positions}): shorten data.seq_length or choose another "
            "teacher"
        )
    return checkpoint


def load_teacher(
    recipe: ResolvedRecipe,
    checkpoint: Checkpoint | None,
    *,
    groups: ProcessGroupCollection,
    device: torch.device,
) -> Teacher | None:
    """Load the teacher from the checkpoint of `open_teacher`, in the type of the run."""
    if recipe.train.distillation is None or checkpoint is None:
        return None
    network = load_network(checkpoint, groups=groups, dtype=compute_dtype(recipe), device=device)
    return Teacher(network, recipe.train.distillation.weight)
