"""Lets megatron-core's schedules run on a machine without CUDA, for tests and laptops; and quickly.

Three habits of megatron-core stand in the way: it asks CUDA for the current device, it synchronises
CUDA, and its schedules build small tensors with `device="cuda"`. All three are answered here, only
while a schedule runs and only where there is no CUDA, so that a CPU test runs the very schedule
that a GPU run uses.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites `device="cuda"` to the CPU in every torch call."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


@contextmanager
def cpu_stands_in_for_cuda() -> Iterator[None]:
    """Answers megatron-core's CUDA calls on the CPU; does nothing where CUDA is available."""
    if torch.cuda.is_available():
        yield
        return
    answers = {"current_device": lambda: torch.device("cpu"), "synchronize": lambda *_: None}
    originals = {name: getattr(torch.cuda, name) for name in answers}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    try:
        with _CudaMeansCpu():
            yield
    finally:
        for name, original in originals.items():
            setattr(torch.cuda, name, original)


# glibc's names for two of its settings (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Has the allocator keep the memory of freed tensors for the next ones.

    By default glibc gives large blocks back to the kernel, which fills them with zeros page by page
    when they are asked for again: of a training step on CPU up to a tenth. Does nothing where
    tensors live on CUDA, whose allocator keeps memory anyway, or where the C library is another.
    """
    if torch.cuda.is_available():
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, -1)
