"""Memory and time of the LM head with its loss: from hidden states to their gradient.

The logits of a large vocabulary are the largest tensor of a training step. Three cases compute the
gradients of the same hidden states and head weight: `dense` holds all logits at once, `chunks`
recomputes them in the backward pass chunk by chunk, and `ours` is the network's own head.
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
"""Computes gradients of rows [rows, hidden] and weight [vocabulary, hidden] for labels [rows]."""


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a head and its input."""

    rows: int
    hidden: int
    vocab_size: int

    def chunk_rows(self, device: torch.device) -> int:
        """Return the number of rows whose logits exist at the same time."""
        return min(self.rows, logits_chunk_rows(self.vocab_size, 1, on_gpu=device.type == "cuda"))


SHAPES = (HeadShape(512, 384, 8192), HeadShape(2048, 768, 50304))


def compare_heads(*, repeats: int = 5, shapes: tuple[HeadShape, ...] = SHAPES) -> list[Row]:
    """Measure all cases on every shape.

    Returns:
        A row for each: the peak bytes of forward and backward pass besides rows, weight and labels,
        in MiB; the same without the two gradients that are the result, in MiB and as a multiple of
        one chunk of float32 logits; the median time, and its ratio to `dense`.
    """
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        cases = {"dense": dense_step, "chunks": chunked_step, "ours": partial(our_step, groups.tp)}
        return [
            row
            for shape in shapes
            for row in measure(shape, cases, device=environment.device, repeats=repeats)
        ]


def measure(
    shape: HeadShape, cases: dict[str, HeadStep], *, device: torch.device, repeats: int
) -> list[Row]:
    """Return the rows of one shape; memory is measured in extra calls, as profiling takes time."""
    inputs = random_inputs(shape, device)
    calls = {name: partial(_with_fresh_gradients, step, inputs) for name, step in cases.items()}
    timings = time_interleaved(calls, repeats=repeats)
    # 4 bytes: the loss is computed in float32, also from bfloat16 weights.
    chunk_bytes = 4 * shape.chunk_rows(device) * shape.vocab_size
    # The gradients of rows and weight have the sizes and types of these two.
    gradients = sum(tensor.nbytes for tensor in inputs[:2])
    rows: list[Row] = []
    for name, call in calls.items():
        # Gradients of the repeat before would be freed inside the call and hide part of its peak.
        _clear_gradients(inputs)
        peak = peak_bytes(call, device)
        rows.append(
            {
                "rows": shape.rows,
                "hidden": shape.hidden,
                "vocabulary": shape.vocab_size,
                "case": name,
                "peak MiB": peak / MIB,
                "without gradients MiB": (peak - gradients) / MIB,
                "chunks of logits": (peak - gradients) / chunk_bytes,
                "median ms": 1000 * timings[name].median,
                "time ratio": ratio(timings, name, "dense"),
            }
        )
    return rows


def random_inputs(shape: HeadShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return random rows, weight and labels."""
    generator, dtype = torch.Generator().manual_seed(0), compute_dtype(device)
    rows = torch.randn(shape.rows, shape.hidden, generator=generator)
    weight = 0.02 * torch.randn(shape.vocab_size, shape.hidden, generator=generator)
    labels = torch.randint(shape.vocab_size, (shape.rows,), generator=generator).to(device)
    rows, weight = (tensor.to(device, dtype).requires_grad_() for tensor in (rows, weight))
    return rows, weight, labels


def dense_step(rows: Tensor, weight: Tensor, labels: Tensor) -> None:
    """Hold all logits at once, in float32 for the loss."""
    _dense_nll(rows, weight, labels).backward()


def chunked_step(rows: Tensor, weight: Tensor, labels: Tensor) -> None:
    """Like `dense_step` chunk by chunk; the backward pass recomputes the logits."""
    size = HeadShape(*rows.shape, vocab_size=len(weight)).chunk_rows(rows.device)
    chunks = zip(rows.split(size), labels.split(size), strict=True)
    sums = [
        # Without checkpoint autograd would keep the logits of all chunks for the backward pass.
        checkpoint(_dense_nll, chunk_rows, weight, chunk_labels, use_reentrant=False)
        for chunk_rows, chunk_labels in chunks
    ]
    torch.stack(sums).sum().backward()  # pyright: ignore[reportArgumentType]


def our_step(group: dist.ProcessGroup, rows: Tensor, weight: Tensor, labels: Tensor) -> None:
    """Run the network's head, with the weight passed in like that of a tied embedding."""
    head = LMHead(len(weight), len(weight), hidden=None, dtype=weight.dtype, group=group)
    ones = torch.ones(1, 1, len(rows), dtype=torch.float64, device=rows.device)
    loss, _ = head(
        rows.unsqueeze(1), labels.unsqueeze(1), tied_weight=weight, loss_spec=LossSpec(ones)
    )
    loss.backward()


def _dense_nll(rows: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((rows @ weight.t()).float(), labels, reduction="sum")


def _with_fresh_gradients(step: HeadStep, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    _clear_gradients(inputs)
    step(*inputs)


def _clear_gradients(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    for leaf in inputs[:2]:
        leaf.grad = None


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the peak bytes of torch's allocator during a call, above those allocated before it.

    On CUDA the allocator keeps count. On CPU the profiler records every block that is allocated or
    freed, including temporaries inside operators, and the running sum of these is exact; walking
    live tensors, or the outputs of operators, would miss temporaries. Buffers that libraries such
    as oneDNN allocate themselves are not counted.
    """
    if device.type == "cuda":
        # The peak counter starts at what is allocated now, which `before` subtracts again.
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
    # An allocation has positive bytes, a free negative ones; a block that was allocated before the
    # call is freed with 0 bytes, because the profiler does not know its size.
    current = peak = 0
    for block in blocks:
        current += block.nbytes()
        peak = max(peak, current)
    return peak
