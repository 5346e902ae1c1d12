"""Whole commands on a tiny model: text, recipe, and the real command in a process of its own.

Each command runs in a process forked by the server of `tests.support.processes`, which has its
imports done; that is the only difference from a command typed in a shell.
"""

import json
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import torch

from armd_scale.config.load import dump_recipe
from armd_scale.config.schema import (
    LogConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    TrainConfig,
    WandbConfig,
)
from armd_scale.order.policies import Progressive
from tests.support.processes import FORKSERVER
from tests.support.recipes import SMALL, bend
from tests.support.shards import write_pair

VOCAB = 64
TIMING = {
    "tokens_per_second", "step_seconds", "mfu", "hfu", "memory_gib",
    "local_seconds_mean", "local_seconds_max", "slowest_rank",
}  # fmt: skip
TRAIN = "armd_scale.train"
ROOT = Path(__file__).parents[2]


def write_text(prefix: Path, *, num_documents: int = 120, seed: int = 0) -> str:
    """Documents of 2 to 40 tokens in which a token mostly decides the next; returns the prefix."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(num_documents):
        tokens = [int(rng.integers(VOCAB))]
        for noise in rng.random(rng.integers(1, 40)):
            tokens.append(int(rng.integers(VOCAB)) if noise < 0.1 else (5 * tokens[-1] + 3) % VOCAB)
        documents.append(tokens)
    return write_pair(prefix, documents)


def tiny_recipe(folder: Path, text: str, **changes: object) -> Recipe:
    """A run in `folder/run` on the pair at `text`; steps take milliseconds.

    Args:
        folder: where the run's folder lies.
        text: prefix of both training and held-out shards.
        changes: other values, as `section__key`.
    """
    recipe = replace(
        SMALL,
        order=Progressive(ar_steps=2, ramp_end=12, rho=8),
        model=ModelConfig(
            layers=2,
            hidden=16,
            ffn_hidden=24,
            heads=2,
            kv_heads=1,
            vocab_size=VOCAB,
            max_anchor_gap=8,
        ),
        optim=OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=4, schedule="constant"),
        train=TrainConfig(steps=8, micro_batch=2, global_batch=4, precision="fp32"),
        log=LogConfig(every_steps=1, wandb=WandbConfig(mode="disabled")),
    )
    bent = {
        "run.folder": str(folder / "run"),
        "data.train": text,
        "data.valid": text,
        "data.seq_length": 16,
        "data.workers": 0,
        "checkpoint.every_steps": 4,
        "eval.every_steps": 0,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return bend(recipe, bent)


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """The recipe as a file."""
    path.write_text(dump_recipe(recipe))
    return path


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    """Exit status; minus the signal's number where one ended it."""
    output: str
    errors: str

    @property
    def sentence(self) -> str:
        """The one sentence of a user's error, once it is sure that there is nothing but it."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        assert self.status == 2, (self.status, self.errors)
        assert len(lines) == 1, self.errors
        assert self.errors.endswith(lines[0] + "\n"), self.errors
        assert "Traceback" not in self.errors
        assert "[rank" not in self.errors
        return lines[0]


class Command:
    """A command that runs: a module or a tool's file, as `python -m MODULE` or `python FILE`."""

    def __init__(
        self,
        entry: str,
        *arguments: object,
        folder: Path,
        file_bytes: int | None = None,
        open_files: int | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> None:
        """Starts it.

        Args:
            entry: name of a module, or path of a file from the root of the repository.
            arguments: of the command line.
            folder: for its two output files.
            file_bytes: largest file that it may write, as a full disk would have it.
            open_files: how many files it may have open, as `ulimit -n` sets it.
            variables: of its environment, besides those of this process; see `launch`.
        """
        self._files = [folder / "stdout.txt", folder / "stderr.txt"]
        words = [str(argument) for argument in arguments]
        limits = {
            number: limit
            for number, limit in (
                (resource.RLIMIT_FSIZE, file_bytes),
                (resource.RLIMIT_NOFILE, open_files),
            )
            if limit is not None
        }
        job = (entry, words, self._files, limits, dict(variables or {}))
        self._process = FORKSERVER.Process(target=_be_command, args=job)
        self._process.start()

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Sends a signal, to all of the command's processes where asked, as a terminal does."""
        (os.killpg if to_group else os.kill)(self.pid, number)

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 60) -> None:
        """Waits until the condition holds, which must be before the command ends."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.is_running, (self._process.exitcode, self._files[1].read_text())
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.001)

    def finish(self, *, seconds: float = 60) -> Finished:
        """Waits for its end."""
        self._process.join(seconds)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            raise AssertionError(f"still running: {self._files[1].read_text()}")
        output, errors = (file.read_text() for file in self._files)
        return Finished(status, output, errors)


def launch(
    entry: str,
    *arguments: object,
    size: int,
    folder: Path,
    file_bytes: Mapping[int, int] = {},
    variables: Mapping[str, object] = {},
) -> list[Command]:
    """Starts a command on each of `size` ranks of one job, as torchrun does; see `Command`.

    Args:
        entry: name of a module, or path of a file from the root of the repository.
        arguments: of every rank's command line.
        size: number of processes.
        folder: each rank's output files go to a folder of its own in it.
        file_bytes: the largest file of a rank, for ranks that have a limit.
        variables: of every rank's environment, besides what torchrun sets.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(size):
        own = folder / f"rank{rank}"
        own.mkdir(parents=True, exist_ok=True)
        place = {**variables, **job, "RANK": rank, "LOCAL_RANK": rank}
        limit = file_bytes.get(rank)
        ranks.append(Command(entry, *arguments, folder=own, variables=place, file_bytes=limit))
    return ranks


def run(entry: str, *arguments: object, folder: Path, **options: Any) -> Finished:
    """Runs a command to its end."""
    return Command(entry, *arguments, folder=folder, **options).finish()


def train(recipe: Recipe, folder: Path, *overrides: str, status: int = 0) -> list[dict[str, Any]]:
    """Trains a recipe by the real command, which must end with `status`; returns its metrics."""
    done = run(TRAIN, write_recipe(recipe, folder / "recipe.yaml"), *overrides, folder=folder)
    assert done.status == status, done.errors
    return metrics(recipe)


def metrics(recipe: Recipe) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without what depends on the clock or on when it was saved."""
    text = (Path(recipe.run.folder) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if "checkpoint_seconds" not in line]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _be_command(
    entry: str,
    arguments: Sequence[str],
    files: Sequence[Path],
    limits: Mapping[int, int],
    variables: Mapping[str, object],
) -> None:
    """Turns this forked process into the command."""
    os.environ.update({name: str(value) for name, value in variables.items()})
    multiprocessing.set_start_method("fork", force=True)  # not the server's way: a command's own
    os.setsid()
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    for number, limit in limits.items():
        resource.setrlimit(number, (limit, limit))
    torch.set_num_threads(1)
    jaxtyping.config.update("jaxtyping_disable", True)  # no checks, as in a command that is typed
    sys.argv = [entry, *arguments]
    if entry.endswith(".py"):
        runpy.run_path(str(ROOT / entry), run_name="__main__")
    else:
        runpy.run_module(entry, run_name="__main__", alter_sys=True)
