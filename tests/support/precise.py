"""Code of others that computes parts in float32, run in float64 all the way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class AllDouble(TorchFunctionMode):
    """Makes every conversion to float32 within the block one to float64.

    transformers computes norms and angles in float32 even of a model in float64, which hides
    differences below 1e-5 in logits. Values that were rounded to float32 before stay so.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func` with float64 in place of float32."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {key: _double(value) for key, value in (kwargs or {}).items()}
        return func(*map(_double, args), **named)


def _double(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
