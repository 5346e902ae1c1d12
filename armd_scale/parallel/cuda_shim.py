"""Lets megatron-core's schedules run on a machine without CUDA, for tests and laptops.

Three habits of megatron-core stand in the way: it asks CUDA for the current device, it synchronises
CUDA, and its schedules build small tensors with `device="cuda"`. All three are answered here, only
while a schedule runs and only where there is no CUDA, so that a CPU test runs the very schedule
that a GPU run uses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _RedirectCudaToCpu(TorchFunctionMode):
    """Rewrites `device="cuda"` to the CPU in every torch call."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


@contextmanager
def patch_cuda_for_cpu() -> Iterator[None]:
    """Answers megatron-core's CUDA calls on the CPU; does nothing where CUDA is available."""
    if torch.cuda.is_available():
        yield
        return
    answers = {"current_device": lambda: torch.device("cpu"), "synchronize": lambda *_: None}
    originals = {name: getattr(torch.cuda, name) for name in answers}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    try:
        with _RedirectCudaToCpu():
            yield
    finally:
        for name, original in originals.items():
            setattr(torch.cuda, name, original)
