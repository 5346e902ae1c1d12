"""The micro-batches of one data parallel rank, from the number of samples consumed alone.

Step after step, the samples of a global batch are consecutive, and rank r of R takes the r-th of R
equal parts, micro-batch by micro-batch. Worker processes only compute ahead: with any number of
them, or none, the batches are the same.
"""

import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from armd_scale.data.batch import ArmdBatch
from armd_scale.data.sample_stream import SampleStream, collate
from armd_scale.errors import ArmdError, TrainingError

PREFETCH_FACTOR = 4


@dataclass(frozen=True)
class MicroBatchRequest:
    """A micro-batch that is yet to be made."""

    step: int
    """Optimizer step it belongs to."""
    samples: range
    """Numbers of its samples."""


@dataclass(frozen=True, kw_only=True)
class DataParallelShare:
    """What one data parallel rank takes of every global batch."""

    micro_batch: int
    """Samples of one forward pass."""
    global_batch: int
    """Samples of one optimizer step, over all ranks."""
    rank: int = 0
    """Data parallel rank."""
    size: int = 1
    """Number of data parallel ranks."""

    def __post_init__(self) -> None:
        assert self.global_batch % (self.micro_batch * self.size) == 0, self
        assert 0 <= self.rank < self.size, self

    def requests(self, step: int, first_sample: int) -> Iterator[MicroBatchRequest]:
        """This rank's micro-batches from `step` on, for ever; `first_sample` opens that step."""
        own = self.global_batch // self.size
        while True:
            begin = first_sample + self.rank * own
            for first in range(begin, begin + own, self.micro_batch):
                yield MicroBatchRequest(step, range(first, first + self.micro_batch))
            step, first_sample = step + 1, first_sample + self.global_batch


class MicroBatchLoader:
    """The micro-batches of one rank, for ever: `for batch in MicroBatches(...)`.

    Each `iter()` starts again at `consumed_samples`, with worker processes of its own, which end
    when the iterator is closed or dropped. While it runs it raises ShardError for what a sample
    raises, in workers too, and TrainingError for a worker that died.

    Args:
        stream: the samples.
        share: what this rank takes of them.
        consumed_samples: samples of all ranks before the first one here.
        first_step: optimizer step of the first one here.
        workers: processes that work ahead; 0: none, batches are made when asked for.
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
        self._stream, self._share, self._workers = stream, share, workers
        self._consumed_samples, self._first_step = consumed_samples, first_step

    def __iter__(self) -> Generator[ArmdBatch, None, None]:
        requests = self._share.requests(self._first_step, self._consumed_samples)
        maker = _MicroBatchDataset(self._stream)
        if self._workers:
            made = _in_workers(maker, requests, self._workers)
        else:
            made = (maker[request] for request in requests)
        # Closed here and now, whatever ends the iteration: if workers were left to the garbage
        # collector, it would tear down their queues first and then wait seconds for each.
        with closing(made):
            for batch in made:
                if isinstance(batch, ArmdError):
                    raise batch
                yield batch


class _MicroBatchDataset(Dataset[ArmdBatch | ArmdError]):
    """Makes requested micro-batches, in this process or in a worker."""

    def __init__(self, stream: SampleStream) -> None:
        self._stream, self._process = stream, os.getpid()

    def __getitem__(self, request: MicroBatchRequest) -> ArmdBatch | ArmdError:
        """The micro-batch, or the error that whoever asked for it should raise.

        DataLoader would raise it with a worker's traceback in its text; users get one sentence.
        """
        try:
            if self._process != os.getpid():
                self._stream.reopen()
                self._process = os.getpid()
            return collate([self._stream.sample(k, step=request.step) for k in request.samples])
        except ArmdError as error:
            return error


def _in_workers(
    maker: _MicroBatchDataset, requests: Iterator[MicroBatchRequest], count: int
) -> Generator[ArmdBatch | ArmdError, None, None]:
    """What `maker` makes of each request, computed by `count` processes some batches ahead."""
    loader = DataLoader(
        maker,
        sampler=requests,  # pyright: ignore[reportArgumentType] - any iterator will do
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=count,
        prefetch_factor=PREFETCH_FACTOR,
        worker_init_fn=_worker_init_fn,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or iter() would draw from the run's global generator
    )
    workers = _start_without_sigchld_handler(loader)
    failure = None
    while failure is None:
        try:
            batch = next(workers)
        except (RuntimeError, EOFError, OSError) as error:
            if not _is_worker_death(error):
                raise
            failure = str(error) or type(error).__name__
        else:
            yield batch
    # Raised outside the handler, so that no traceback keeps the other workers.
    del workers
    raise TrainingError(
        f"data loading processes must live as long as the run, got '{failure}': "
        "check that memory suffices and resume, with data.workers=0 if it happens again"
    )


def _is_worker_death(error: Exception) -> bool:
    """Whether DataLoader raised this for a worker that died, not for what one raised.

    Death is noticed either by a look at the process or by a connection that breaks in mid-transfer.
    """
    broken = isinstance(error, EOFError | ConnectionError | FileNotFoundError)
    return "exited unexpectedly" in str(error) or (broken and "Caught" not in str(error))


def _start_without_sigchld_handler(loader: DataLoader[Any]) -> Iterator[Any]:
    """Starts the workers, without the signal handler that DataLoader brings along.

    When a worker dies, that handler raises wherever the program happens to be: within an optimizer
    step, within a save. The check in next() finds the death too, in seconds.
    """
    before = signal.getsignal(signal.SIGCHLD)
    workers = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return workers


def _unchanged(batch: Any) -> Any:
    return batch


def _worker_init_fn(worker: int) -> None:
    """Sets up the signals of a worker process.

    Ctrl-C and a scheduler's SIGTERM go to every process of a job, but it is the trainer that
    answers them: it finishes its step and saves, for which it still needs batches. So a worker
    ignores both, except for a SIGTERM from its own parent, which is how Python ends its children.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parent_sigterm, args=(os.getppid(),), daemon=True).start()


def _exit_on_parent_sigterm(parent: int) -> None:
    """Waits for a SIGTERM that comes from the parent, and ends the process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
