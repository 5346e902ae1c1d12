"""Save a checkpoint: weights, optimizer state, training state, recipe and tokenizer."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from armd_scale.checkpoint.async_task import BackgroundTask, all_ranks_done, gather_results
from armd_scale.checkpoint.sharded_io import Network, ShardedWriter, StateDicts
from armd_scale.checkpoint.store import (
    commit,
    create_partial,
    folder_name,
    partial_folder,
    write_error,
)
from armd_scale.config.load import dump_recipe
from armd_scale.config.schema import Recipe
from armd_scale.errors import CheckpointError

RECIPE, STATE, TOKENIZER = "recipe.yaml", "state.json", "tokenizer"
WEIGHTS, OPTIMIZER = "weights", "optimizer"
SOURCE = "source"
"""Folder with the configuration of the model that a checkpoint was converted from."""


class CheckpointSave:
    """A checkpoint that is being written; all ranks create one and call its methods together.

    `CheckpointSave(...).wait()` saves synchronously. For an asynchronous save, keep the object and
    call `poll` after each training step. The checkpoint appears complete or not at all. Errors are
    raised on all ranks alike, by the constructor and by every method: CheckpointError if something
    cannot be written.

    The constructor finds out what this rank writes. Then a thread of each rank writes, flushes and
    hashes its files; once all ranks have done so, a thread of rank 0 writes index and manifest,
    renames the folder and removes old checkpoints.

    The main threads exchange the results of these threads in small collectives on the training
    groups, between training steps. A process group of their own would let the threads exchange them
    without waiting for a step, but then two threads of a process would start collectives in no
    fixed order, which can deadlock NCCL.

    Args:
        checkpoints: folder with the checkpoints of the run.
        step: optimizer steps done.
        network: network whose parameters define the tensors and how they are split.
        recipe: recipe with all derived values that rebuild the network, such as the vocabulary
            size.
        state: what else must survive a restart; JSON values.
        optimizer: sections of the optimizer's tensors; empty for a checkpoint that others start
            from (`model.init_from`).
        tokenizer: contents of the tokenizer's files by name; none if the data has none.
        source: contents of the configuration files of the model that this one was converted from;
            none if it was not.
        weights: weights by parameter name; None: the network's parameters, which must then be
            whole (not partitioned by ZeRO 3).

    All tensors must keep their values until the save is done.
    """

    def __init__(
        self,
        checkpoints: Path,
        *,
        step: int,
        network: Network,
        recipe: Recipe,
        state: Mapping[str, Any],
        optimizer: StateDicts,
        tokenizer: Mapping[str, bytes],
        source: Mapping[str, bytes] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.folder = checkpoints / folder_name(step)
        self._device = next(network.parameters()).device
        self._recipe = recipe
        self._folders = {TOKENIZER: tokenizer, SOURCE: source or {}}
        # Serialized now: the caller's state goes on changing while a thread writes the files.
        self._text_files = {RECIPE: dump_recipe(recipe), STATE: json.dumps(state, indent=1)}
        partial = self._create_partial(step)
        # Weights and optimizer are separate folders, so that evaluation reads and verifies a part.
        subfolders = {
            WEIGHTS: {"weights": weights or network.parameters_by_name()},
            OPTIMIZER: optimizer,
        }
        writers = {
            name: ShardedWriter(partial / name, sections, network=network, groups=network.groups)
            for name, sections in subfolders.items()
            if sections
        }
        self._tasks = self._run_phases(partial, writers)
        self._task: BackgroundTask | None = next(self._tasks)

    def poll(self) -> bool:
        """Start the next phase if all ranks have finished the present one; never block.

        Returns:
            Whether the checkpoint is complete.
        """
        # All ranks see the same value of `all_ranks_done`, so all start the next phase, with its
        # collectives, after the same training step.
        while self._task is not None and all_ranks_done(self._task, self._device):
            self._task = next(self._tasks, None)
        return self._task is None

    def wait(self) -> Path:
        """Block until the checkpoint is complete; return its folder."""
        while not self.poll():
            assert self._task is not None
            self._task.wait()
        return self.folder

    def cancel(self) -> None:
        """Block until this rank writes no more; the folder stays incomplete."""
        if self._task is not None:
            self._task.wait()

    def _create_partial(self, step: int) -> Path:
        """Let rank 0 create the folder to write into, and return its path on all ranks."""
        checkpoints = self.folder.parent
        task = self._rank0_task(
            lambda: create_partial(checkpoints, step, subfolders=(WEIGHTS, OPTIMIZER))
        )
        task.wait()
        gather_results(task, self._write_error)
        return partial_folder(checkpoints, step)

    def _run_phases(
        self, partial: Path, writers: Mapping[str, ShardedWriter]
    ) -> Iterator[BackgroundTask]:
        """Yield the task of each phase as it starts; resume only when all ranks have finished it.

        Written as a generator so that the order of phases, with the collective between them, reads
        from top to bottom, although `poll` runs it in pieces between training steps.
        """
        task = BackgroundTask(lambda: {name: writer.write() for name, writer in writers.items()})
        yield task
        results = gather_results(task, self._write_error)
        task = self._rank0_task(lambda: self._commit(partial, writers, results))
        yield task
        gather_results(task, self._write_error)

    def _commit(
        self,
        partial: Path,
        writers: Mapping[str, ShardedWriter],
        results: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add the files that are not tensors, and turn the folder into a checkpoint.

        Args:
            partial: the folder.
            writers: by subfolder.
            results: of `ShardedWriter.write`, by rank and subfolder.
        """
        # `commit` hashes these few small files itself; the large ones were hashed as they were
        # written, by the rank that wrote them.
        for name, text in self._text_files.items():
            (partial / name).write_text(text)
        for folder, files in self._folders.items():
            if files:
                (partial / folder).mkdir()
            for name, content in files.items():
                (partial / folder / name).write_bytes(content)
        hashed = {}
        for name, writer in writers.items():
            writer.finish([rank[name].records for rank in results])
            for rank in results:
                hashed |= {f"{name}/{file}": record for file, record in rank[name].files.items()}
        retention = self._recipe.checkpoint
        commit(partial, keep=retention.keep, keep_every=retention.keep_every, hashed=hashed)

    def _rank0_task(self, work: Callable[[], Any]) -> BackgroundTask:
        """Run `work` on rank 0, and a task that does nothing on the other ranks."""
        return BackgroundTask(work if dist.get_rank() == 0 else lambda: None)

    def _write_error(self, error: OSError) -> CheckpointError:
        return write_error(self.folder.parent, error)
