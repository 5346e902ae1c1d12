"""Memory and time of the head with its loss: from the last layer's rows to their gradient.

The logits of a large vocabulary are the largest tensor of a training step. Three ways make the
gradients of the same rows and weight: `dense` has all logits at once, `chunks` makes them again in
the backward pass, chunk by chunk, and `ours` is what the network does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from armd_scale.bench.suites.step import compute_dtype
from armd_scale.bench.table import Row
from armd_scale.bench.timing import ratio, time_interleaved
from armd_scale.config.derived import logits_chunk_rows
from armd_scale.config.schema import ParallelConfig
from armd_scale.model.lm_head import LMHead
from armd_scale.model.loss_spec import LossSpec
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

MIB = 1 << 20
HeadStep = Callable[[Tensor, Tensor, Tensor], None]
"""From rows [rows, hidden], weight [vocabulary, hidden] and labels [rows] to their gradients."""


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a head and of what it reads."""

    rows: int
    hidden: int
    vocab_size: int

    def chunk_rows(self, device: torch.device) -> int:
        """Rows whose logits exist at a time."""
        return min(self.rows, logits_chunk_rows(self.vocab_size, 1, on_gpu=device.type == "cuda"))


SHAPES = (HeadShape(512, 384, 8192), HeadShape(2048, 768, 50304))


def compare_heads(*, runs: int = 5, shapes: tuple[HeadShape, ...] = SHAPES) -> list[Row]:
    """Measures all ways on every shape.

    Returns:
        A row for each: the most bytes that forward and backward pass held besides rows, weight and
        labels, in MiB; how many remain without the two gradients that come out, in MiB and as a
        multiple of one chunk's logits in float32; the median time, and its ratio to `dense`.
    """
    here = read_environment()
    with process_groups(here, ParallelConfig()) as groups:
        ways = {"dense": dense_step, "chunks": chunked_step, "ours": partial(our_step, groups.tp)}
        return [
            row for shape in shapes for row in measure(shape, ways, device=here.device, runs=runs)
        ]


def measure(
    shape: HeadShape, ways: dict[str, HeadStep], *, device: torch.device, runs: int
) -> list[Row]:
    """The rows of one shape; times are taken in turn, memory in runs of their own."""
    inputs = inputs_of(shape, device)
    calls = {name: partial(_with_fresh_gradients, way, inputs) for name, way in ways.items()}
    times = time_interleaved(calls, runs=runs)
    chunk_bytes = 4 * shape.chunk_rows(device) * shape.vocab_size
    gradients = sum(one.nbytes for one in inputs[:2])
    rows: list[Row] = []
    for name, call in calls.items():
        _forget_gradients(inputs)
        peak = peak_bytes(call, device)
        rows.append(
            {
                "rows": shape.rows,
                "hidden": shape.hidden,
                "vocabulary": shape.vocab_size,
                "way": name,
                "peak MiB": peak / MIB,
                "without gradients MiB": (peak - gradients) / MIB,
                "chunks of logits": (peak - gradients) / chunk_bytes,
                "median ms": 1000 * times[name].median,
                "time ratio": ratio(times, name, "dense"),
            }
        )
    return rows


def inputs_of(shape: HeadShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weight and labels."""
    draw, dtype = torch.Generator().manual_seed(0), compute_dtype(device)
    rows = torch.randn(shape.rows, shape.hidden, generator=draw)
    weight = 0.02 * torch.randn(shape.vocab_size, shape.hidden, generator=draw)
    labels = torch.randint(shape.vocab_size, (shape.rows,), generator=draw).to(device)
    placed = [one.to(device, dtype).requires_grad_() for one in (rows, weight)]
    return placed[0], placed[1], labels


def dense_step(rows: Tensor, weight: Tensor, labels: Tensor) -> None:
    """All logits at once, in float32 for the loss."""
    _dense_nll(rows, weight, labels).backward()


def chunked_step(rows: Tensor, weight: Tensor, labels: Tensor) -> None:
    """The dense way chunk by chunk; the backward pass makes the logits again."""
    size = HeadShape(*rows.shape, vocab_size=len(weight)).chunk_rows(rows.device)
    parts = zip(rows.split(size), labels.split(size), strict=True)
    sums = [
        checkpoint(_dense_nll, chunk, weight, its_labels, use_reentrant=False)
        for chunk, its_labels in parts
    ]
    torch.stack(sums).sum().backward()  # pyright: ignore[reportArgumentType]


def our_step(group: dist.ProcessGroup, rows: Tensor, weight: Tensor, labels: Tensor) -> None:
    """What the network's head does, with weights given to it as a tied embedding's are."""
    head = LMHead(len(weight), len(weight), hidden=None, dtype=weight.dtype, group=group)
    one = torch.ones(1, 1, len(rows), dtype=torch.float64, device=rows.device)
    spec = LossSpec(one)
    loss, _ = head(rows.unsqueeze(1), labels.unsqueeze(1), tied_weight=weight, loss_spec=spec)
    loss.backward()


def _dense_nll(rows: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((rows @ weight.t()).float(), labels, reduction="sum")


def _with_fresh_gradients(step: HeadStep, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    _forget_gradients(inputs)
    step(*inputs)


def _forget_gradients(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    for leaf in inputs[:2]:
        leaf.grad = None


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes of torch's allocator that a call holds over those held before it.

    On CUDA the allocator keeps count. On CPU the profiler records every block that the allocator
    hands out and gets back, temporaries inside operators included, and the running sum of these
    is exact; walking live tensors, or watching the outputs of operators, would miss temporaries.
    Not counted are buffers that libraries such as oneDNN allocate by themselves. Blocks from before
    the call are of unknown size as they are freed, and count as nothing.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events: list[Any] = profiler.profiler.kineto_results.events()
    blocks = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = most = 0
    for block in blocks:
        held += block.nbytes()
        most = max(most, held)
    return most
