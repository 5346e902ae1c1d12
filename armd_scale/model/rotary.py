"""Rotary position embedding for rows that carry their own positions.

Sorting by slot scatters positions, so the angles are looked up per row instead of counted off; they
are computed once per forward and shared by all layers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd_scale.config.derived import rotary_dim
from armd_scale.config.resolve import ResolvedModel
from armd_scale.config.schema import ModelConfig, RopeScaling


@dataclass(frozen=True)
class RotaryCosSin:
    """Cosines and sines of the rows' angles, one for each pair, in the dtype of the heads."""

    cos: Float[Tensor, "rows batch 1 pairs"]
    sin: Float[Tensor, "rows batch 1 pairs"]

    def __call__(
        self, x: Float[Tensor, "rows batch heads head_dim"]
    ) -> Float[Tensor, "rows batch heads head_dim"]:
        """Turns every pair (x_i, x_{i + pairs}) by its angle (the rotate-half convention).

        Channels behind the pairs stay as they are.
        """
        if not torch.is_grad_enabled():
            return _apply_rotary(x, self.cos, self.sin)
        return _ApplyRotary.apply(x, self.cos, self.sin)  # pyright: ignore[reportReturnType]

    def rows(self, start: int, stop: int) -> "RotaryCosSin":
        """The rotation of the rows start..stop-1."""
        if (start, stop) == (0, len(self.cos)):
            return self
        return RotaryCosSin(self.cos[start:stop], self.sin[start:stop])


class _ApplyRotary(torch.autograd.Function):
    """A rotation, whose gradient is turned back; it keeps no activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _apply_rotary(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return _apply_rotary(upstream[0], cos, -sin), None, None


def _apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs, turned = cos.shape[-1], torch.empty_like(x)
    parts = (pairs, pairs, x.shape[-1] - 2 * pairs)
    low, high, kept = x.split(parts, dim=-1)
    new_low, new_high, new_kept = turned.split(parts, dim=-1)
    torch.mul(low, cos, out=new_low).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=new_high).addcmul_(low, sin)
    if parts[-1]:
        new_kept.copy_(kept)
    return turned


def inverse_frequencies(model: ResolvedModel) -> Float[Tensor, " pairs"]:
    """Radians per position of each pair, stretched where asked for.

    In float32 at any precision of the network: published models were trained with these values, and
    are other functions with better ones.
    """
    width = rotary_dim(model)
    pairs = torch.arange(0, width, 2, dtype=torch.float32)
    frequencies = 1 / model.rope_theta ** (pairs / width)
    scaling = model.rope_scaling
    if scaling is None:
        return frequencies
    match scaling.rope_type:
        case "linear":
            kept = torch.zeros_like(frequencies)
        case "llama3":
            kept = _llama3_ramp(frequencies, scaling)
        case "yarn":
            kept = _yarn_ramp(width, model.rope_theta, scaling)
    return kept * frequencies + (1 - kept) * (frequencies / scaling.factor)


def attention_scaling(model: ModelConfig) -> float:
    """Factor of the turned channels; YaRN's sharpens attention over a longer context."""
    scaling = model.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    return 0.1 * math.log(scaling.factor) + 1


def _llama3_ramp(
    frequencies: Float[Tensor, " pairs"], scaling: RopeScaling
) -> Float[Tensor, " pairs"]:
    """1 where a pair turns often within the original context, 0 where hardly (Llama 3.1)."""
    low, high, original = _bounds(scaling)
    turns = original / (2 * math.pi / frequencies)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_ramp(width: int, base: float, scaling: RopeScaling) -> Float[Tensor, " pairs"]:
    """The same, falling evenly over the pairs between the bounds, these rounded (YaRN)."""
    low, high, original = _bounds(scaling)

    def dim_for_num_rotations(times: float) -> float:
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(dim_for_num_rotations(high)), 0)
    last = min(math.ceil(dim_for_num_rotations(low)), width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float32)
    return 1 - ((pairs - first) / (last - first or 1e-3)).clamp(0, 1)


def _bounds(scaling: RopeScaling) -> tuple[float, float, int]:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if scaling.rope_type == "yarn":
        low, high = scaling.beta_slow, scaling.beta_fast
    original = scaling.original_max_position_embeddings
    assert low is not None, "a rule asks for the bounds"
    assert high is not None
    assert original is not None
    return low, high, original


def rotation_at(
    positions: Int[Tensor, "batch rows"],
    frequencies: Float[Tensor, " pairs"],
    dtype: torch.dtype,
    *,
    amplitude: float = 1.0,
) -> RotaryCosSin:
    """The rotation of rows at `positions`; angles in float32 at least, whatever `dtype`."""
    precise = torch.promote_types(dtype, torch.float32)
    angles = positions.t().unsqueeze(-1).to(precise) * frequencies.to(precise)
    angles = angles.unsqueeze(2)
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    return RotaryCosSin(cos.to(dtype), sin.to(dtype))
