"""Worker processes that encode units, and the parent that hands them out and sees one die."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import final

from armd_scale.data.preprocess.encode_unit import EncodeJob, encode_unit
from armd_scale.data.preprocess.sources import WorkUnit
from armd_scale.data.tokenizer import load_tokenizer, use_one_thread
from armd_scale.errors import ArmdError, CorpusError

_SECONDS_TO_STOP = 2.0


@final
@dataclass
class _Worker:
    """A process, our end of the pipe to it, and the unit it works on."""

    process: SpawnProcess
    pipe: Connection
    task: tuple[int, WorkUnit] | None = None


def encode_units(
    job: EncodeJob,
    tasks: Iterable[tuple[int, WorkUnit]],
    *,
    workers: int,
    finished: Callable[[WorkUnit], None],
) -> None:
    """Encodes numbered units, here for one worker and in processes of their own for more.

    Args:
        job: what the units share.
        tasks: unit numbers and units.
        workers: processes.
        finished: called after each unit.

    Raises:
        ArmdError: what a worker raised, or that it died; the others are stopped first.
    """
    tasks = list(tasks)
    if workers == 1 or len(tasks) == 1:
        tokenizer = load_tokenizer(job.tokenizer)
        for number, unit in tasks:
            for _ in encode_unit(job, tokenizer, number=number, unit=unit):
                pass
            finished(unit)
    elif tasks:
        with _pool(job, min(workers, len(tasks))) as pool:
            _dispatch(pool, iter(tasks), finished)


def _dispatch(
    pool: Sequence[_Worker],
    tasks: Iterator[tuple[int, WorkUnit]],
    finished: Callable[[WorkUnit], None],
) -> None:
    for worker in pool:
        _assign(worker, next(tasks, None))
    while busy := {worker.pipe: worker for worker in pool if worker.task}:
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            assert worker.task is not None
            _, unit = worker.task
            answer = _receive(worker, unit)
            if isinstance(answer, ArmdError):
                raise answer
            finished(unit)
            _assign(worker, next(tasks, None))


def _assign(worker: _Worker, task: tuple[int, WorkUnit] | None) -> None:
    worker.task = task
    if task is not None:
        try:
            worker.pipe.send(task)
        except OSError:
            # It died between two units; its closed pipe is what `wait` reports next.
            return


def _receive(worker: _Worker, unit: WorkUnit) -> ArmdError | None:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError) as error:
        worker.process.join(_SECONDS_TO_STOP)
        raise CorpusError(
            f"a worker died on {unit} ({_cause(worker.process.exitcode)}): run the same command "
            "again, which keeps what is finished, with fewer --workers if memory ran out"
        ) from error


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit status {exitcode}"


@contextmanager
def _pool(job: EncodeJob, count: int) -> Iterator[list[_Worker]]:
    # Spawned, not forked: the parent may hold threads of the tokenizer or of a caller's libraries.
    context = multiprocessing.get_context("spawn")
    pool: list[_Worker] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(job, theirs, os.getpid()), daemon=True)
            process.start()
            # The child must hold the only other end, or its death would not close the pipe.
            theirs.close()
            pool.append(_Worker(process, ours))
        yield pool
    finally:
        for worker in pool:
            worker.pipe.close()
            # Idle workers leave at the closed pipe; those inside a unit are stopped.
            if worker.task is not None:
                worker.process.terminate()
        for worker in pool:
            worker.process.join(_SECONDS_TO_STOP)
            worker.process.kill()


def _work(job: EncodeJob, pipe: Connection, parent: int) -> None:
    """A worker's life: units until the pipe closes or the parent is gone."""
    # Ctrl-C reaches the whole group; the parent decides what it means and stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_one_thread()
    tokenizer = load_tokenizer(job.tokenizer)
    try:
        while True:
            number, unit = pipe.recv()
            for _ in encode_unit(job, tokenizer, number=number, unit=unit):
                if os.getppid() != parent:
                    return
            pipe.send(None)
    except ArmdError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
