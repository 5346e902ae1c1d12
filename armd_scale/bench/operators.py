"""Which operators a call spends its time in, from torch's profiler.

Times are self times: what an operator takes less what the operators inside it take, so that they
add up to the whole and nothing counts twice. On CUDA they are the device's time in an operator's
kernels. An operator belongs to attention if one around it is attention, whichever kernel serves:
the mask that is made of booleans inside the call and the products and softmax of the plain kernel
count there. Autograd's nodes have the sequence number of the operator that they differentiate, and
so the backward pass of such products counts there too.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PRODUCTS, ATTENTION, OTHER = "matrix products", "attention", "other"
GROUPS = (PRODUCTS, ATTENTION, OTHER)
_PRODUCTS = frozenset(
    f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation")
) | {"mkldnn::_linear_pointwise", "aten::mkldnn_linear"}
_ATTENTION = ("scaled_dot_product", "scaleddotproduct", "flex_attention", "flexattention")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One kind of operator in one group."""

    name: str
    group: str
    calls: float
    """A run."""
    milliseconds: float
    """A run, without the operators inside."""


def profile_operators(
    call: Callable[[], object], *, runs: int, device: torch.device
) -> list[Operator]:
    """Profiles runs of a call, after one that warms up."""
    call()
    profiler = new_profiler(device)
    with profiler:
        for _ in range(runs):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return operators_of(profiler, runs=runs, device=device)


def new_profiler(device: torch.device) -> profile:
    """A profiler of what the device does; not started."""
    on_device = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    return profile(activities=[ProfilerActivity.CPU, *on_device])


def operators_of(
    profiler: profile,
    *,
    runs: int,
    device: torch.device,
    inside: str | None = None,
) -> list[Operator]:
    """What a stopped profiler has seen, the longest first.

    Args:
        profiler: of some runs.
        runs: their number.
        device: whose time counts.
        inside: leave out what is not inside a range of this name.
    """
    events: list[Any] = list(profiler.events() or [])
    calls, microseconds = defaultdict(int), defaultdict(float)
    on_cuda = device.type == "cuda"
    attention = _attention_events(events)
    for event in events:
        if event.device_type != DeviceType.CPU or not _is_inside(event, inside):
            continue
        key = (event.name, ATTENTION if event.id in attention else _group(event.name))
        calls[key] += 1
        microseconds[key] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
    if on_cuda and inside is None:
        # Kernels that were launched from outside any operator, as compiled code may do.
        launched = sum(
            event.self_device_time_total
            for event in events
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        )
        microseconds["outside operators", OTHER] = max(0.0, launched - sum(microseconds.values()))
    found = [
        Operator(
            name=name, group=group, calls=calls[name, group] / runs, milliseconds=t / runs / 1e3
        )
        for (name, group), t in microseconds.items()
    ]
    return sorted(found, key=lambda operator: -operator.milliseconds)


def total(operators: Iterable[Operator], group: str | None = None) -> float:
    """Milliseconds a run of a group, or of all."""
    return sum((one.milliseconds for one in operators if group in (None, one.group)), 0.0)


def _is_inside(event: Any, range_name: str | None) -> bool:
    if range_name is None:
        return True
    return event.name != range_name and any(one.name == range_name for one in _around(event))


def _group(name: str) -> str:
    return PRODUCTS if name in _PRODUCTS else OTHER


def _attention_events(events: Iterable[Any]) -> set[int]:
    """The ids of all events that are attention or inside it, forward and backward."""
    # An operator that makes no node of autograd has the number of the next one that does: the last
    # to begin with a number owns it.
    forward = (event for event in events if not _is_backward(event) and event.sequence_nr >= 0)
    owners = {event.sequence_nr: event for event in sorted(forward, key=_start)}
    numbers = {number for number, owner in owners.items() if _is_attention(owner)}
    return {
        event.id
        for event in events
        if _is_attention(event)
        or any(_is_node(one) and one.sequence_nr in numbers for one in _around(event))
    }


def _is_attention(event: Any) -> bool:
    names = (one.name.lower() for one in _around(event))
    return any(word in name for name in names for word in _ATTENTION)


def _is_backward(event: Any) -> bool:
    return any(map(_is_node, _around(event)))


def _is_node(event: Any) -> bool:
    return event.name.startswith("autograd::engine::evaluate_function")


def _start(event: Any) -> float:
    return event.time_range.start


def _around(event: Any) -> Iterator[Any]:
    """The event and those that it is inside of."""
    while event is not None:
        yield event
        event = event.cpu_parent
