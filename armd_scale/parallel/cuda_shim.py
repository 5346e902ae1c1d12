"""Runs megatron-core's pipeline schedules on machines without CUDA, for tests and laptops.

megatron-core makes three CUDA assumptions: it asks CUDA for the current device, it synchronizes
CUDA, and its schedules create small tensors with `device="cuda"`. Each is redirected to the CPU,
only inside the context manager and only if CUDA is not available. So a CPU test runs the very
schedule that a GPU run uses, and no second pipeline implementation exists.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _RedirectCudaToCpu(TorchFunctionMode):
    """Replace a `device` keyword of "cuda" by the CPU in every torch call."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


@contextmanager
def patch_cuda_for_cpu() -> Iterator[None]:
    """Redirect CUDA calls to the CPU inside the block; a no-op if CUDA is available."""
    if torch.cuda.is_available():
        yield
        return
    # These two are plain Python functions of torch.cuda, which the mode does not see.
    replacements = {"current_device": lambda: torch.device("cpu"), "synchronize": lambda *_: None}
    originals = {name: getattr(torch.cuda, name) for name in replacements}
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    try:
        with _RedirectCudaToCpu():
            yield
    finally:
        for name, original in originals.items():
            setattr(torch.cuda, name, original)
