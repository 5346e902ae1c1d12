"""The micro-batches of one data parallel rank, from the number of consumed samples alone.

The samples of a global batch have consecutive indices, step after step. Rank r of R takes the r-th
of R equal parts of each global batch, micro-batch by micro-batch. Worker processes only compute
ahead: with any number of them, or none, the batches are the same.
"""

import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from armd_scale.data.batch import ArmdBatch
from armd_scale.data.sample_stream import SampleStream, collate
from armd_scale.errors import ArmdError, TrainingError

PREFETCH_FACTOR = 4
"""Number of batches that each worker computes ahead."""


@dataclass(frozen=True)
class MicroBatchRequest:
    """A micro-batch that is still to be made."""

    step: int
    """Optimizer step it belongs to."""
    samples: range
    """Indices of its samples in the run."""


@dataclass(frozen=True, kw_only=True)
class DataParallelShare:
    """The part of every global batch that one data parallel rank takes."""

    micro_batch: int
    """Samples in one forward pass."""
    global_batch: int
    """Samples in one optimizer step, over all ranks."""
    rank: int = 0
    """Data parallel rank."""
    size: int = 1
    """Number of data parallel ranks."""

    def __post_init__(self) -> None:
        assert self.global_batch % (self.micro_batch * self.size) == 0, self
        assert 0 <= self.rank < self.size, self

    def requests(self, step: int, first_sample: int) -> Iterator[MicroBatchRequest]:
        """Yield this rank's micro-batches from `step` on, without end.

        Args:
            step: optimizer step of the first micro-batch.
            first_sample: index of the first sample of that step, over all ranks.
        """
        num_own = self.global_batch // self.size
        while True:
            start = first_sample + self.rank * num_own
            for first in range(start, start + num_own, self.micro_batch):
                yield MicroBatchRequest(step, range(first, first + self.micro_batch))
            step, first_sample = step + 1, first_sample + self.global_batch


class MicroBatchLoader:
    """The micro-batches of one rank, without end: `for batch in MicroBatchLoader(...)`.

    Each `iter()` starts again at `consumed_samples`, with worker processes of its own, which exit
    when the iterator is closed or deleted. Iterating raises ShardError for an error in a sample,
    also in a worker, and TrainingError if a worker dies.

    Args:
        stream: the samples.
        share: the part of them that this rank takes.
        consumed_samples: number of samples, over all ranks, before the first one here.
        first_step: optimizer step of the first one here.
        workers: number of processes that compute ahead; 0: batches are made when they are needed.
    """

    def __init__(
        self,
        stream: SampleStream,
        share: DataParallelShare,
        *,
        consumed_samples: int = 0,
        first_step: int = 0,
        workers: int = 0,
    ) -> None:
        self._stream, self._share, self._num_workers = stream, share, workers
        self._consumed_samples, self._first_step = consumed_samples, first_step

    def __iter__(self) -> Generator[ArmdBatch, None, None]:
        requests = self._share.requests(self._first_step, self._consumed_samples)
        dataset = _MicroBatchDataset(self._stream)
        if self._num_workers:
            batches = _load_in_workers(dataset, requests, self._num_workers)
        else:
            batches = (dataset[request] for request in requests)
        # Closed here, however the iteration ends. The garbage collector would tear down the queues
        # to the workers before the workers, and then wait seconds for each of them.
        with closing(batches):
            for batch in batches:
                if isinstance(batch, ArmdError):
                    raise batch
                yield batch


class _MicroBatchDataset(Dataset[ArmdBatch | ArmdError]):
    """Makes micro-batches, in this process or in a worker."""

    def __init__(self, stream: SampleStream) -> None:
        self._stream = stream

    def __getitem__(self, request: MicroBatchRequest) -> ArmdBatch | ArmdError:
        """Return the micro-batch, or the error that the loader should raise.

        If it were raised here, DataLoader would raise it again in the trainer with the worker's
        traceback as its text; a user's error is one sentence.
        """
        try:
            return collate([self._stream.sample(k, step=request.step) for k in request.samples])
        except ArmdError as error:
            return error


def _load_in_workers(
    dataset: _MicroBatchDataset, requests: Iterator[MicroBatchRequest], num_workers: int
) -> Generator[ArmdBatch | ArmdError, None, None]:
    """Yield the micro-batch of each request, computed some batches ahead by worker processes.

    Raises:
        TrainingError: a worker died.
    """
    loader = DataLoader(
        dataset,
        # The requests take the place of indices: DataLoader passes whatever its sampler yields to
        # dataset[...], and returns the results in that order.
        sampler=requests,  # pyright: ignore[reportArgumentType] - typed as Iterable, used as such
        batch_size=None,  # the dataset makes whole batches itself
        collate_fn=_identity,  # the default would convert and copy the batch
        num_workers=num_workers,
        prefetch_factor=PREFETCH_FACTOR,
        worker_init_fn=_worker_init_fn,
        pin_memory=torch.cuda.is_available(),
        # Without a generator, iter() draws the workers' seeds from the global generator of the run,
        # and a run with workers would no longer equal one without.
        generator=torch.Generator(),
    )
    batches = _start_without_sigchld_handler(loader)
    failure = None
    while failure is None:
        try:
            batch = next(batches)
        except (RuntimeError, EOFError, OSError) as error:
            if not _is_worker_death(error):
                raise
            failure = str(error) or type(error).__name__
        else:
            yield batch
    # Raised outside the except block: there the traceback of the caught error would keep the
    # DataLoader's iterator, and with it the other workers, alive.
    del batches
    raise TrainingError(
        f"a data loading process died ('{failure}'): check that there is enough memory and resume, "
        "with data.workers=0 if it happens again"
    )


def _is_worker_death(error: Exception) -> bool:
    """Return whether DataLoader raised this because a worker died.

    It notices a death either when it checks the processes ("exited unexpectedly") or because a
    connection breaks while a batch is transferred. An error that a worker raised while it was alive
    has "Caught ... in DataLoader worker process" in its text.
    """
    is_broken = isinstance(error, EOFError | ConnectionError | FileNotFoundError)
    return "exited unexpectedly" in str(error) or (is_broken and "Caught" not in str(error))


def _start_without_sigchld_handler(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers and remove the signal handler that DataLoader installs.

    When a worker dies, that handler raises an exception at whatever line the program is just
    executing, such as inside an optimizer step or a save. The check in next() also finds the death,
    within seconds, at a point where nothing is half done.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    with _blocked_sigterm():
        batches = iter(loader)
    # Python allows only the main thread to set handlers, and only there DataLoader has set one.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return batches


def _identity(batch: Any) -> Any:
    return batch


@contextmanager
def _blocked_sigterm() -> Generator[None, None, None]:
    """Block SIGTERM in this thread, and so in all threads of a process that it forks.

    A worker must receive it in the one thread that looks at its sender. In a thread that a library
    starts before `_worker_init_fn` runs it would be lost, also that of the parent.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _worker_init_fn(worker_id: int) -> None:
    """Set up the signals of a worker process.

    Ctrl-C and the SIGTERM of a scheduler reach every process of a job, but the trainer handles
    them: it finishes its step and saves, and needs more batches for that. So a worker ignores both,
    except for a SIGTERM of its own parent, which is how Python ends its child processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # A Python signal handler does not learn who sent the signal, but sigwaitinfo does. It needs
        # the signal blocked, as it is in all threads (see `_blocked_sigterm`), and a thread that
        # waits for it. Ignored besides, in case that a library unblocks it: the handler of
        # DataLoader would end the process.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parent_sigterm, args=(os.getppid(),), daemon=True).start()


def _exit_on_parent_sigterm(parent: int) -> None:
    """Wait for a SIGTERM of the parent process, then exit."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    # sys.exit would only end this thread.
    os._exit(0)
