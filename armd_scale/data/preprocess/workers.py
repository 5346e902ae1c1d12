"""Encode work units in worker processes, and notice when one of them dies."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeAlias, final

from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.encode_unit import encode_unit
from armd_scale.data.preprocess.work_units import WorkUnit
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import ArmdError, CorpusError

IndexedUnit: TypeAlias = tuple[int, WorkUnit]
"""A unit with its index in the whole corpus."""

_STOP_TIMEOUT_SECONDS = 2.0


@final
@dataclass
class _Worker:
    """A process, this end of the pipe to it, and the unit it works on (None: it is idle)."""

    process: SpawnProcess
    # To the worker: a unit with its index. From the worker: None when the unit is done, or an
    # error.
    pipe: Connection
    current: IndexedUnit | None = None


def encode_units(
    job: EncodeJob,
    units: Iterable[IndexedUnit],
    *,
    num_workers: int,
    on_unit_done: Callable[[WorkUnit], None],
) -> None:
    """Encode units: in this process with one worker, in processes of their own with more.

    Args:
        job: settings that all units share.
        units: the units with their indices.
        num_workers: number of processes.
        on_unit_done: called after each unit.

    Raises:
        ArmdError: what a worker raised, or that it died. The other workers are stopped first.
    """
    units = list(units)
    if num_workers == 1 or len(units) == 1:
        tokenizer = load_tokenizer(job.tokenizer, special_tokens=job.special_tokens)
        for unit_index, unit in units:
            for _ in encode_unit(job, tokenizer, unit_index=unit_index, unit=unit):
                pass
            on_unit_done(unit)
    elif units:
        with _worker_pool(job, min(num_workers, len(units))) as workers:
            _dispatch(workers, iter(units), on_unit_done)


# A pool of the standard library would not do: multiprocessing.Pool waits forever for the result of
# a killed worker, and concurrent.futures reports its death without the unit that it worked on.
def _dispatch(
    workers: Sequence[_Worker],
    units: Iterator[IndexedUnit],
    on_unit_done: Callable[[WorkUnit], None],
) -> None:
    """Keep every worker busy until all units are done."""
    for worker in workers:
        _assign(worker, next(units, None))
    while busy := [worker for worker in workers if worker.current]:
        # A pipe is ready when its worker has answered and also when its worker has died.
        ready = wait([worker.pipe for worker in busy])
        for worker in (worker for worker in busy if worker.pipe in ready):
            assert worker.current is not None
            _, unit = worker.current
            error = _receive(worker, unit)
            if error is not None:
                raise error
            on_unit_done(unit)
            _assign(worker, next(units, None))


def _assign(worker: _Worker, unit: IndexedUnit | None) -> None:
    """Send a worker its next unit; None leaves it idle."""
    worker.current = unit
    if unit is not None:
        try:
            worker.pipe.send(unit)
        except OSError:
            # The worker died between two units. `wait` will report its closed pipe, and `_receive`
            # then raises the error that names the unit.
            return


def _receive(worker: _Worker, unit: WorkUnit) -> ArmdError | None:
    """Receive a worker's answer about a unit: its error, or None if the unit is done.

    Raises:
        CorpusError: the worker died.
    """
    try:
        return worker.pipe.recv()
    except (EOFError, OSError) as error:
        worker.process.join(_STOP_TIMEOUT_SECONDS)  # or there is no exit status yet
        raise CorpusError(
            f"a worker died on {unit} ({_cause_of_death(worker.process.exitcode)}): run the same "
            "command again, with fewer --workers if memory ran out; finished work is kept"
        ) from error


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit status {exitcode}"


@contextmanager
def _worker_pool(job: EncodeJob, num_workers: int) -> Generator[list[_Worker], None, None]:
    """Start workers; stop them at the end of the block, also those inside a unit."""
    # Spawned, not forked: this process may have threads (of the tokenizer, or of a library of the
    # caller), and a fork copies locks that such a thread holds but not the thread that frees them.
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        for _ in range(num_workers):
            parent_end, child_end = context.Pipe()
            arguments = (job, child_end, os.getpid())
            process = context.Process(target=_worker_main, args=arguments, daemon=True)
            try:
                process.start()
            except OSError as error:
                raise CorpusError(
                    f"--workers must be a number of processes that can be started, but process "
                    f"{len(workers) + 1} of {num_workers} cannot ({error.strerror}): use fewer"
                ) from error
            # Close this process's copy of the child's end: the pipe reports the worker's death only
            # when no process has that end open any more.
            child_end.close()
            workers.append(_Worker(process, parent_end))
        yield workers
    finally:
        for worker in workers:
            worker.pipe.close()
            # An idle worker exits when its pipe closes. One inside a unit would notice only after
            # it, so it is terminated; the unit has no report and the next run encodes it again.
            if worker.current is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join(_STOP_TIMEOUT_SECONDS)
            worker.process.kill()


def _worker_main(job: EncodeJob, pipe: Connection, parent: int) -> None:
    """Encode units until the pipe closes or the parent process is gone."""
    # Ctrl-C sends SIGINT to the whole process group. The parent handles it and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _use_one_thread()
    try:
        tokenizer = load_tokenizer(job.tokenizer, special_tokens=job.special_tokens)
        while True:
            unit_index, unit = pipe.recv()
            for _ in encode_unit(job, tokenizer, unit_index=unit_index, unit=unit):
                # A killed parent cannot stop its workers: each checks for itself, once per batch.
                if os.getppid() != parent:
                    return
            pipe.send(None)
    except ArmdError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent closed the pipe: there is no more work


def _use_one_thread() -> None:
    """Make the `tokenizers` library of this process encode in the calling thread.

    For worker processes, of which there is one per core. The library has no other switch than this
    variable, which it reads from the process environment at each call.
    """
    # putenv: only the library in this process has to see it; Python passes child processes its own
    # copy of the environment, which this does not change.
    os.putenv("TOKENIZERS_PARALLELISM", "false")
