"""Run code of other libraries in float64 where it would compute in float32."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class AllDouble(TorchFunctionMode):
    """Turn every conversion to float32 inside the `with` block into one to float64.

    transformers computes norms and rotary angles in float32 even if the model is in float64, which
    hides differences below 1e-5 in logits. Values that are already rounded to float32 stay rounded.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func` with float64 instead of float32."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        kwargs = {key: _as_float64(value) for key, value in (kwargs or {}).items()}
        return func(*map(_as_float64, args), **kwargs)


def _as_float64(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
