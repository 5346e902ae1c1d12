"""Micro-batches: the same samples whatever the run's length, ranks, workers or interruptions."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from armd_scale.data import loader
from armd_scale.data.batch import ArmdBatch
from armd_scale.data.loader import DataParallelShare, MicroBatchLoader
from armd_scale.data.sample_stream import SampleStream
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import ShardError, TrainingError
from armd_scale.order.policies import OrderPolicy, Progressive, RandomPermutation, Strided
from armd_scale.order.spans import KeySpans
from tests.support.shards import write_pair

GLOBAL_BATCH = 8


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Some 60 windows of 16 targets, from documents of 1 to 40 tokens."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 500, rng.integers(1, 41)).tolist() for _ in range(48)]
    return write_pair(tmp_path / "corpus", documents)


def open_samples(
    prefix: str, *, order: OrderPolicy | None = None, vocab_size: int = 500
) -> SampleStream:
    windows = TokenWindows(prefix, 16, packing="documents", vocab_size=vocab_size)
    return SampleStream([windows], [1.0], order=order or RandomPermutation(), seed=99)


def equal(first: ArmdBatch, second: ArmdBatch) -> bool:
    def parts(batch: ArmdBatch) -> list[object]:
        values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
        pairs = [[v.start, v.stop] if isinstance(v, KeySpans) else [v] for v in values]
        return list(itertools.chain.from_iterable(pairs))

    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        for a, b in zip(parts(first), parts(second), strict=True)
    )


def samples_of(prefix: str, steps: int, *, size: int, micro_batch: int) -> dict[int, bytes]:
    """Collect the tensors of each sample of `steps` steps from all ranks of a world of `size`."""
    own_batches = steps * GLOBAL_BATCH // size // micro_batch
    contents: dict[int, bytes] = {}
    for rank in range(size):
        share = DataParallelShare(
            micro_batch=micro_batch, global_batch=GLOBAL_BATCH, rank=rank, size=size
        )
        batches = MicroBatchLoader(open_samples(prefix), share)
        for batch in itertools.islice(batches, own_batches):
            for row, sample in enumerate(batch.sample_index.tolist()):
                assert sample not in contents
                tensors = (batch.tokens, batch.labels, batch.order, batch.block)
                contents[sample] = b"".join(tensor[row].numpy().tobytes() for tensor in tensors)
    return contents


def test_samples_do_not_depend_on_the_length_of_the_run_or_the_world_size(prefix: str) -> None:
    short = samples_of(prefix, 5, size=1, micro_batch=4)
    assert sorted(short) == list(range(40))
    for size, micro_batch in ((1, 8), (2, 2), (4, 2), (4, 1)):
        long = samples_of(prefix, 15, size=size, micro_batch=micro_batch)
        assert sorted(long) == list(range(120))
        assert {sample: long[sample] for sample in short} == short


def test_ranks_take_equal_parts_of_each_global_batch(prefix: str) -> None:
    def numbers(rank: int) -> list[list[int]]:
        share = DataParallelShare(micro_batch=2, global_batch=8, rank=rank, size=2)
        batches = itertools.islice(MicroBatchLoader(open_samples(prefix), share), 4)
        return [batch.sample_index.tolist() for batch in batches]

    assert numbers(0) == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert numbers(1) == [[4, 5], [6, 7], [12, 13], [14, 15]]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_resumed_run_continues_with_the_next_samples(prefix: str, workers: int) -> None:
    order = Progressive(ar_steps=2, ramp_end=12, rho=16)
    stream = open_samples(prefix, order=order)
    share = DataParallelShare(micro_batch=4, global_batch=GLOBAL_BATCH)
    whole = list(itertools.islice(MicroBatchLoader(stream, share), 12))
    resumed = MicroBatchLoader(
        stream, share, consumed_samples=3 * GLOBAL_BATCH, first_step=3, workers=workers
    )
    rest = list(itertools.islice(resumed, 6))
    assert all(equal(a, b) for a, b in zip(whole[6:], rest, strict=True))
    assert [batch.is_left_to_right for batch in whole[:6]] == [True] * 6
    assert not all(batch.is_left_to_right for batch in whole[6:])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(prefix: str, workers: int) -> None:
    stream = open_samples(prefix, order=Strided())
    share = DataParallelShare(micro_batch=4, global_batch=GLOBAL_BATCH)
    state = torch.random.get_rng_state()
    inline = itertools.islice(MicroBatchLoader(stream, share), 15)
    ahead = itertools.islice(MicroBatchLoader(stream, share, workers=workers), 15)
    assert all(equal(a, b) for a, b in zip(inline, ahead, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)  # the run's own randomness is untouched


def wait_until_gone(processes: Sequence[BaseProcess], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(process.is_alive() for process in processes)


def start(prefix: str, *, workers: int) -> tuple:
    """An iterator that has given its first batch, and its worker processes."""
    before = set(multiprocessing.active_children())
    share = DataParallelShare(micro_batch=2, global_batch=GLOBAL_BATCH)
    batches = iter(MicroBatchLoader(open_samples(prefix), share, workers=workers))
    next(batches)
    children = [child for child in multiprocessing.active_children() if child not in before]
    assert len(children) == workers
    return batches, children


def test_closing_ends_the_workers(prefix: str) -> None:
    batches, children = start(prefix, workers=2)
    batches.close()
    assert wait_until_gone(children, 5)


def test_dropping_ends_the_workers(prefix: str) -> None:
    batches, children = start(prefix, workers=2)
    del batches
    assert wait_until_gone(children, 5)


@pytest.mark.slow(minutes=0.1)
def test_a_dead_worker_ends_the_run_with_one_sentence(prefix: str) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    batches, children = start(prefix, workers=2)
    assert signal.getsignal(signal.SIGCHLD) is handler
    os.kill(children[0].pid, signal.SIGKILL)
    start_time = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        list(itertools.islice(batches, 100))
    assert time.monotonic() - start_time < 20
    assert "a data loading process died ('" in str(caught.value)
    assert "resume, with data.workers=0 if it happens again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert wait_until_gone(children, 10)


def test_stop_signals_are_left_to_the_trainer(prefix: str) -> None:
    batches, children = start(prefix, workers=1)
    for name in ("INT", "TERM"):  # from another process, as a terminal or a scheduler sends them
        subprocess.run(["sh", "-c", f"kill -{name} {children[0].pid}"], check=True)
    for _ in range(12):  # more than was computed before the signals
        next(batches)
    assert children[0].is_alive()
    children[0].terminate()  # from the parent: this one is meant
    assert wait_until_gone(children, 5)


def test_stop_signals_are_ignored_also_by_threads_of_libraries(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_signals = loader._worker_init_fn

    def start_a_thread_first(worker_id: int) -> None:  # it does not inherit the blocked signals
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        set_up_signals(worker_id)

    monkeypatch.setattr(loader, "_worker_init_fn", start_a_thread_first)
    batches, children = start(prefix, workers=1)
    for _ in range(20):  # the kernel chooses the thread
        subprocess.run(["sh", "-c", f"kill -TERM {children[0].pid}"], check=True)
    for _ in range(12):
        next(batches)
    assert children[0].is_alive()
    children[0].terminate()  # not lost in the thread either
    assert wait_until_gone(children, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_sample_stays_one_sentence(prefix: str, workers: int) -> None:
    stream = open_samples(prefix, vocab_size=490)
    share = DataParallelShare(micro_batch=4, global_batch=GLOBAL_BATCH)
    before = set(multiprocessing.active_children())
    with pytest.raises(ShardError) as caught:
        list(itertools.islice(MicroBatchLoader(stream, share, workers=workers), 40))
    assert "must be below the model's vocabulary of 490" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert wait_until_gone([c for c in multiprocessing.active_children() if c not in before], 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_files_that_vanish_before_a_worker_opens_them_are_named(prefix: str, workers: int) -> None:
    batches = MicroBatchLoader(
        open_samples(prefix),
        DataParallelShare(micro_batch=4, global_batch=GLOBAL_BATCH),
        workers=workers,
    )
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(ShardError) as caught:
        next(iter(batches))
    assert prefix in str(caught.value)
    assert "\n" not in str(caught.value)
