"""Operators that a call spends its time in, read from torch's profiler.

Times are self times: the time of an operator without the operators inside it, so that they add up
to the total and nothing counts twice. On CUDA they are the device time of an operator's kernels.

An operator counts as attention if it runs inside an attention call, whichever kernel that call
uses: the boolean mask that the call converts, and the products and softmax of the plain kernel.
Autograd nodes carry the sequence number of the forward operator that they differentiate, so the
backward pass of such products counts as attention too.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MATMUL, ATTENTION, OTHER = "matmul", "attention", "other"
GROUPS = (MATMUL, ATTENTION, OTHER)
# `aten::linear` and `aten::matmul` are left out: they only call one of these, and what remains of
# their own time is dispatch.
_MATMUL_OPERATORS = frozenset(
    f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation")
) | {"mkldnn::_linear_pointwise", "aten::mkldnn_linear"}
_ATTENTION_WORDS = ("scaled_dot_product", "scaleddotproduct", "flex_attention", "flexattention")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One kind of operator in one group."""

    name: str
    group: str
    calls: float
    """Number per repeat."""
    milliseconds: float
    """Self time per repeat."""


def profile_operators(
    call: Callable[[], object], *, repeats: int, device: torch.device
) -> list[Operator]:
    """Profile `repeats` calls, after one that warms up."""
    # The first call also pays for compiling kernels, choosing algorithms and allocating memory.
    call()
    profiler = new_profiler(device)
    with profiler:
        for _ in range(repeats):
            call()
        # Kernels that are still queued would otherwise be missing from the profile.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return operators_of(profiler, repeats=repeats, device=device)


def new_profiler(device: torch.device) -> profile:
    """Return a profiler for the device; it is not started."""
    device_activities = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    return profile(activities=[ProfilerActivity.CPU, *device_activities])


def operators_of(
    profiler: profile,
    *,
    repeats: int,
    device: torch.device,
    inside: str | None = None,
) -> list[Operator]:
    """Return the operators that a stopped profiler recorded, longest first.

    Args:
        profiler: the profiler.
        repeats: number of repeats that it recorded.
        device: the device whose time counts.
        inside: count only what runs inside `record_function` ranges of this name.
    """
    events: list[Any] = list(profiler.events() or [])
    calls, microseconds = defaultdict(int), defaultdict(float)
    on_cuda = device.type == "cuda"
    attention = _attention_events(events)
    for event in events:
        # Events of the device are kernels. Their time is in the operators that launched them too,
        # as `self_device_time_total`: counting both would count it twice.
        if event.device_type != DeviceType.CPU or not _is_inside(event, inside):
            continue
        key = (event.name, ATTENTION if event.id in attention else _group(event.name))
        calls[key] += 1
        microseconds[key] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
    if on_cuda and inside is None:
        # Compiled code launches kernels outside any operator: all kernels minus those of operators.
        kernels = sum(
            event.self_device_time_total
            for event in events
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        )
        microseconds["outside operators", OTHER] = max(0.0, kernels - sum(microseconds.values()))
    operators = [
        Operator(
            name=name,
            group=group,
            calls=calls[name, group] / repeats,
            milliseconds=time / repeats / 1e3,
        )
        for (name, group), time in microseconds.items()
    ]
    return sorted(operators, key=lambda operator: -operator.milliseconds)


def total(operators: Iterable[Operator], group: str | None = None) -> float:
    """Return the milliseconds per repeat of a group, or of all operators."""
    return sum(
        (operator.milliseconds for operator in operators if group in (None, operator.group)), 0.0
    )


def _is_inside(event: Any, range_name: str | None) -> bool:
    if range_name is None:
        return True
    return event.name != range_name and any(
        ancestor.name == range_name for ancestor in _with_ancestors(event)
    )


def _group(name: str) -> str:
    return MATMUL if name in _MATMUL_OPERATORS else OTHER


def _attention_events(events: Iterable[Any]) -> set[int]:
    """Return the ids of all events that are attention or inside it, forward and backward."""
    # An operator that creates no autograd node has the sequence number of the next one that does,
    # so of all forward events with a number the one that starts last created the node.
    forward = (event for event in events if not _is_backward(event) and event.sequence_nr >= 0)
    creators = {event.sequence_nr: event for event in sorted(forward, key=_start)}
    numbers = {number for number, creator in creators.items() if _is_attention(creator)}
    return {
        event.id
        for event in events
        if _is_attention(event)
        or any(
            _is_autograd_node(ancestor) and ancestor.sequence_nr in numbers
            for ancestor in _with_ancestors(event)
        )
    }


def _is_attention(event: Any) -> bool:
    names = (ancestor.name.lower() for ancestor in _with_ancestors(event))
    return any(word in name for name in names for word in _ATTENTION_WORDS)


def _is_backward(event: Any) -> bool:
    return any(map(_is_autograd_node, _with_ancestors(event)))


def _is_autograd_node(event: Any) -> bool:
    return event.name.startswith("autograd::engine::evaluate_function")


def _start(event: Any) -> float:
    return event.time_range.start


def _with_ancestors(event: Any) -> Iterator[Any]:
    """Yield the event and the events that it runs inside, innermost first."""
    while event is not None:
        yield event
        event = event.cpu_parent
