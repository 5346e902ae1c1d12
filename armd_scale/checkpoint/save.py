"""Writes a checkpoint: weights, optimizer, training state, recipe and tokenizer in one folder."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.async_task import BackgroundTask, all_ranks_done, gather_results
from armd_scale.checkpoint.sharded_io import Network, ShardedWriter, StateDicts, plan_sections
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


class CheckpointSave:
    """A checkpoint on its way to disk; every process makes one and calls its methods in step.

    Making it agrees who writes what. Files are then written, flushed and hashed in a thread of each
    process; once all have done so, a thread of the first writes index and manifest, renames the
    folder and removes old checkpoints. What the threads came to, the main threads tell one another,
    in small collectives on the training's own groups and in its own order. A group of their own
    would let the threads do so without a step in between, but then two threads of a process start
    collectives in no agreed order, which NCCL may answer with a deadlock.

    `Saving(...).wait()` saves at once. The checkpoint exists whole or not at all. Errors too are
    raised by all processes alike: CheckpointError where something cannot be written, by the
    constructor and every method.

    Args:
        checkpoints: the folder that holds a run's checkpoints.
        step: optimizer steps done.
        network: whose parameters say which tensors there are and how they are split.
        recipe: with every derived number that rebuilds the network, such as the vocabulary.
        state: what else survives a restart; JSON values.
        optimizer: sections of the optimizer's tensors; empty for a checkpoint to start others from.
        tokenizer: folder of the tokenizer, copied along; None where the data has none.
        groups: the process groups of the layout.
        weights: by parameter name; None: the network's own, which must then hold them whole. All
            tensors must keep their values until this is done.
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
        tokenizer: Path | None,
        groups: ProcessGroupCollection,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.folder = checkpoints / folder_name(step)
        self._device = next(network.parameters()).device
        self._recipe, self._tokenizer = recipe, tokenizer
        self._text_files = {RECIPE: dump_recipe(recipe), STATE: json.dumps(state, indent=1)}
        partial = self._begin(step)
        named = {
            WEIGHTS: {"weights": weights or network.parameters_by_name()},
            OPTIMIZER: optimizer,
        }
        files = {
            name: plan_sections(sections, partial / name, network=network, groups=groups)
            for name, sections in named.items()
            if sections
        }
        self._stages = self._phases(partial, files)
        self._task: BackgroundTask | None = next(self._stages)

    def poll(self) -> bool:
        """Goes on with what all processes are ready for, without waiting; whether all is done."""
        while self._task is not None and all_ranks_done(self._task, self._device):
            self._task = next(self._stages, None)
        return self._task is None

    def wait(self) -> Path:
        """The checkpoint's folder, once it is there."""
        while not self.poll():
            assert self._task is not None
            self._task.wait()
        return self.folder

    def cancel(self) -> None:
        """Returns when this process writes no more; the folder stays unfinished."""
        if self._task is not None:
            self._task.wait()

    def _begin(self, step: int) -> Path:
        """The folder to write into, which the first process makes."""
        checkpoints = self.folder.parent
        begun = self._rank0_task(
            lambda: create_partial(checkpoints, step, subfolders=(WEIGHTS, OPTIMIZER))
        )
        begun.wait()
        gather_results(begun, self._write_error)
        return partial_folder(checkpoints, step)

    def _phases(
        self, partial: Path, files: Mapping[str, ShardedWriter]
    ) -> Iterator[BackgroundTask]:
        """What is to be done, each task yielded as it starts and left once all have ended it."""
        task = BackgroundTask(lambda: {name: section.write() for name, section in files.items()})
        yield task
        written = gather_results(task, self._write_error)
        task = self._rank0_task(lambda: self._commit(partial, files, written))
        yield task
        gather_results(task, self._write_error)

    def _commit(
        self,
        partial: Path,
        files: Mapping[str, ShardedWriter],
        written: Sequence[Mapping[str, Any]],
    ) -> None:
        """Adds all that is not a tensor and makes the folder a checkpoint."""
        for name, text in self._text_files.items():
            (partial / name).write_text(text)
        if self._tokenizer is not None:
            shutil.copytree(self._tokenizer, partial / TOKENIZER)
        hashed = {}
        for name, section in files.items():
            section.finish([rank[name].results for rank in written])
            for rank in written:
                hashed |= {f"{name}/{file}": entry for file, entry in rank[name].entries.items()}
        commit(partial, keep=self._recipe.checkpoint.keep, hashed=hashed)

    def _rank0_task(self, work: Callable[[], Any]) -> BackgroundTask:
        """The first process's task; the others have nothing to do meanwhile."""
        return BackgroundTask(work if dist.get_rank() == 0 else lambda: None)

    def _write_error(self, error: OSError) -> CheckpointError:
        return write_error(self.folder.parent, error)
