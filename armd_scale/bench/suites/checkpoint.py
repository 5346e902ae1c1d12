"""Cost of saving and loading: the stall of training, and bandwidth compared with dd.

dd writes zeros and reads them back, as many bytes as a checkpoint has, on the same file system and
in turn with our saves and loads. Both writes end with fsync. Before either read the files are
dropped from the page cache, and the share of bytes that really came from storage is reported.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.disk import Disk, summarize
from armd_scale.bench.table import Row
from armd_scale.checkpoint.load import load_optimizer, load_weights, open_checkpoint
from armd_scale.config.derived import num_parameters
from armd_scale.config.resolve import ResolvedModel, ResolvedRecipe, resolve, resolve_model
from armd_scale.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    Recipe,
    RunConfig,
    TrainConfig,
)
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.optim.zero_engine import MOMENTS
from armd_scale.order.policies import LeftToRight
from armd_scale.parallel.environment import DistributedEnv, read_environment
from armd_scale.parallel.process_groups import process_groups
from armd_scale.train.build import build_model, build_optimizer
from armd_scale.train.callbacks.checkpointer import Checkpointer
from armd_scale.train.context import TrainingContext
from armd_scale.train.model_files import ModelFiles
from armd_scale.train.step import StepRunner

# 69M weights: a checkpoint of 1.1 GB, with 4 bytes for each weight, its master copy and its two
# moments.
MODEL = resolve_model(
    ModelConfig(
        layers=8, hidden=768, ffn_hidden=2048, heads=12, vocab_size=16384, two_stream_layers=2
    )
)
# Short, so that steps are quick: they are there to be measured beside a write.
SEQ_LENGTH = 64
Stage = Literal[0, 1, 2, 3]


def compare_saves(
    *,
    saves: int = 5,
    parallel: ParallelConfig | None = None,
    zero_stage: Stage = 1,
    model: ResolvedModel = MODEL,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Train and save, synchronously and in the background in turn, on all processes of the job.

    Args:
        saves: number of saves of each kind; one more of each comes first and is reported
            separately, because the first background save allocates the host memory.
        parallel: the layout; data parallelism takes the remaining processes.
        zero_stage: ZeRO stage of the optimizer.
        model: the model that is trained.
        folder: folder on the storage to measure; None: a temporary folder.

    Returns:
        JSON values: for each kind the seconds that training stalled; the seconds that background
        saves took to be written; seconds of steps without a write and during one; seconds of
        loading what a run resumes from, and of dd.
    """
    environment = read_environment()
    parallel = parallel or ParallelConfig()
    with process_groups(environment, parallel) as groups, _shared_folder(folder) as place:
        recipe = _recipe(place, model, parallel, zero_stage=zero_stage, size=groups.dp.size())
        job = _Job(recipe, environment, groups)
        kinds = {"synchronous": job.checkpointer(False), "asynchronous": job.checkpointer(True)}
        first = {name: job.save(saver) for name, saver in kinds.items()}
        disk = Disk(place / "dd", _newest(place / "synchronous"))
        # In turn, so that a change in the load of the storage affects both kinds and dd alike.
        timed: dict[str, list[_Save]] = {name: [] for name in kinds}
        for _ in range(saves):
            for name, saver in kinds.items():
                timed[name].append(job.save(saver))
            disk.measure(_newest(place / "synchronous"), job.load)
        return {
            "processes": environment.world_size,
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "zero_stage": zero_stage,
            "parameters": num_parameters(model, model.vocab_size),
            "checkpoint_bytes": disk.checkpoint_bytes,
            "first_stall_seconds": {name: save.stall_seconds for name, save in first.items()},
            **_summary(**timed),
            **disk.summary(),
        }


def measure_saves(saves: int, folder: Path | None) -> list[Row]:
    """Run `compare_saves` with ZeRO 1 on the processes of this job; returns a table."""
    return table(compare_saves(saves=saves, folder=folder))


def table(result: dict[str, Any]) -> list[Row]:
    """Return a row for each kind of write and read, with its time ratio to dd's write or read.

    A background save has two rows: the stall of training, and the time until all is written.
    """
    gigabytes, stalls = result["checkpoint_bytes"] / 1e9, result["stall_seconds"]
    shares = result["from_storage_share"]
    cases = {
        "synchronous save": (stalls["synchronous"], "dd_write"),
        "background save, stall": (stalls["asynchronous"], "dd_write"),
        "background save, written": (result["background_seconds"], "dd_write"),
        "dd write": (result["dd_write_seconds"], "dd_write"),
        "load, hashes checked": (result["load_seconds"], "dd_read"),
        "dd read": (result["dd_read_seconds"], "dd_read"),
    }
    # MB/s of the stall of a background save is the rate of the copy to host memory, not of storage.
    return [
        {
            "case": case,
            "GB": gigabytes,
            "median s": summary["median"],
            "min s": summary["min"],
            "max s": summary["max"],
            "MB/s": 1000 * gigabytes / summary["median"],
            "dd time ratio": summary["median"] / result[f"{dd}_seconds"]["median"],
            # Only reads have a share; their keys are what precedes the comma in the case.
            "from storage share": shares.get(case.split(",")[0], ""),
        }
        for case, (summary, dd) in cases.items()
    ]


def _summary(synchronous: "list[_Save]", asynchronous: "list[_Save]") -> dict[str, Any]:
    stalls = {
        "synchronous": summarize([save.stall_seconds for save in synchronous]),
        "asynchronous": summarize([save.stall_seconds for save in asynchronous]),
    }
    quiet = [seconds for save in synchronous for seconds in save.step_seconds]
    during = [seconds for save in asynchronous for seconds in save.beside_seconds]
    return {
        "stall_seconds": stalls,
        "asynchronous_to_synchronous": stalls["asynchronous"]["median"]
        / stalls["synchronous"]["median"],
        # From the end of the stall until a poll finds the save complete, up to one step late. The
        # stall is not included.
        "background_seconds": summarize([save.background_seconds for save in asynchronous]),
        "step_seconds": summarize(quiet),
        "step_seconds_beside_a_write": summarize(during) if during else None,
    }


@dataclass
class _Save:
    """Times of one save and of the steps around it, in seconds."""

    stall_seconds: float
    background_seconds: float
    step_seconds: list[float]
    """Steps before the save."""
    beside_seconds: list[float]
    """Steps while it was written in the background."""


@dataclass
class _Lines:
    """A metrics writer that keeps the lines in memory."""

    lines: list[Mapping[str, Any]] = field(default_factory=list)

    def write(self, values: Mapping[str, Any]) -> None:
        self.lines.append(values)

    def close(self) -> None:
        pass


class _Job:
    """A run whose steps and saves are started one by one."""

    STEPS_BEFORE_SAVE = 3

    def __init__(
        self, recipe: ResolvedRecipe, environment: DistributedEnv, groups: ProcessGroupCollection
    ) -> None:
        self._context = TrainingContext(recipe, environment, groups)
        network = build_model(recipe, None, groups=groups, device=environment.device)
        self._engine, _, self._state = build_optimizer(recipe, network, None)
        self._step_runner = StepRunner(self._engine)
        # A second network, because loading into the first one would change what is trained.
        self._load_target = build_model(recipe, None, groups=groups, device=environment.device)
        self._batches = [_batch(recipe).to(environment.device)]
        self._lines = _Lines()

    def checkpointer(self, asynchronous: bool) -> Checkpointer:
        recipe = self._context.recipe
        folder = Path(recipe.run.folder) / ("asynchronous" if asynchronous else "synchronous")
        recipe = replace(
            recipe,
            run=replace(recipe.run, folder=str(folder)),
            checkpoint=replace(recipe.checkpoint, asynchronous=asynchronous),
        )
        return Checkpointer(
            replace(self._context, recipe=recipe),
            self._engine,
            [self._lines],
            average=None,
            start_step=-1,
            files=ModelFiles(),
            data=[],
        )

    def save(self, checkpointer: Checkpointer) -> _Save:
        step_seconds = [self._step() for _ in range(self.STEPS_BEFORE_SAVE)]
        num_lines = len(self._lines.lines)
        checkpointer.save(self._state)
        beside_seconds = []
        # `poll` is collective and reports at the same call on every rank, so that all ranks leave
        # the loop after the same number of steps.
        while len(self._lines.lines) == num_lines:  # the line is written when the save is complete
            beside_seconds.append(self._step())
            checkpointer.poll()
        line = self._lines.lines[-1]
        background = line["checkpoint_background_seconds"]
        return _Save(line["checkpoint_seconds"], background, step_seconds, beside_seconds)

    def load(self, folder: Path) -> None:
        """Load what a run resumes from, hashes checked, into a network like the job's."""
        network, groups = self._load_target, self._context.groups
        checkpoint = open_checkpoint(folder, with_optimizer=True)
        load_weights(checkpoint, network, groups=groups)
        # What a resumed run reads: this rank's part of each tensor. The optimizer is not updated.
        load_optimizer(checkpoint, ["master", *MOMENTS], network=network, groups=groups)

    def _step(self) -> float:
        result = self._step_runner.run(
            self._batches, learning_rate=1e-4, start_time=time.perf_counter()
        )
        self._state = self._state.advance(samples=1, tokens=result.tokens)
        return result.seconds


def _recipe(
    folder: Path, model: ResolvedModel, parallel: ParallelConfig, *, zero_stage: Stage, size: int
) -> ResolvedRecipe:
    # No shards are read, as `_batch` makes the tokens. One sample per rank and step; and one
    # checkpoint of each kind, so that the folder does not grow with the number of saves.
    recipe = Recipe(
        run=RunConfig(name="saves", folder=str(folder)),
        data=DataConfig(train="none", seq_length=SEQ_LENGTH),
        order=LeftToRight(),
        model=model,
        parallel=parallel,
        optim=OptimConfig(warmup_steps=0, schedule="constant", zero_stage=zero_stage),
        train=TrainConfig(steps=1000, micro_batch=1, global_batch=size, precision="fp32"),
        checkpoint=CheckpointConfig(every_steps=1, keep=1),
        eval=EvalConfig(every_steps=0, orders=(), samples=1),
        log=LogConfig(every_steps=1),
    )
    return resolve(recipe)


def _batch(recipe: ResolvedRecipe) -> ArmdBatch:
    length = recipe.data.seq_length + 1
    tokens = np.random.default_rng(0).integers(0, recipe.model.vocab_size, size=(1, length))
    block = np.arange(length)[None]
    return make_batch(tokens, block, lengths=[(length,)], sample_index=np.zeros(1, dtype=np.int64))


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


@contextmanager
def _shared_folder(parent: Path | None) -> Iterator[Path]:
    """Yield a temporary folder that rank 0 created and all processes see."""
    with tempfile.TemporaryDirectory(dir=parent) as own:
        shared = [own]
        dist.broadcast_object_list(shared)
        # The folders of the other ranks stay empty.
        yield Path(shared[0])
        # Rank 0 removes the folder when it leaves; by then no rank may still use it.
        dist.barrier()
