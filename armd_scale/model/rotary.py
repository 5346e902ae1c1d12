"""Rotary position embedding (arXiv 2104.09864) for rows that carry their own positions.

Sorting by slot scatters positions, so angles are computed from each row's position instead of from
its row number. They are computed once per forward pass and shared by all layers.
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
    """Cosines and sines of the rows' angles, one per channel pair, in the dtype of the heads."""

    cos: Float[Tensor, "rows batch 1 pairs"]
    sin: Float[Tensor, "rows batch 1 pairs"]

    def __call__(
        self, x: Float[Tensor, "rows batch heads head_dim"]
    ) -> Float[Tensor, "rows batch heads head_dim"]:
        """Rotate every pair (x_i, x_{i + pairs}) by its angle (the rotate-half convention of HF).

        Channels from 2 * pairs on are unchanged (partial rotary embedding).
        """
        if not torch.is_grad_enabled():  # decoding, where the autograd function is pure overhead
            return _apply_rotary(x, self.cos, self.sin)
        return _ApplyRotary.apply(x, self.cos, self.sin)  # pyright: ignore[reportReturnType]

    def rows(self, start: int, stop: int) -> "RotaryCosSin":
        """Return the rotation of rows start..stop-1."""
        if (start, stop) == (0, len(self.cos)):
            return self
        return RotaryCosSin(self.cos[start:stop], self.sin[start:stop])


class _ApplyRotary(torch.autograd.Function):
    """Rotation whose backward pass is the inverse rotation, so that it saves no activation.

    Differentiated operator by operator, autograd would save each half of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _apply_rotary(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        cos, sin = ctx.saved_tensors
        # The transpose of [[cos, -sin], [sin, cos]], also if both are scaled (YaRN).
        return _apply_rotary(upstream[0], cos, -sin), None, None


def _apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute (low * cos - high * sin, high * cos + low * sin, rest).

    Written into one output through views: the concatenations of the usual formula,
    x * cos + cat(-high, low) * sin, would copy all heads twice more.
    """
    pairs, output = cos.shape[-1], torch.empty_like(x)
    widths = (pairs, pairs, x.shape[-1] - 2 * pairs)
    low, high, rest = x.split(widths, dim=-1)
    out_low, out_high, out_rest = output.split(widths, dim=-1)
    torch.mul(low, cos, out=out_low).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=out_high).addcmul_(low, sin)
    if widths[-1]:
        out_rest.copy_(rest)
    return output


def inverse_frequencies(model: ResolvedModel) -> Float[Tensor, " pairs"]:
    """Return the angle per position of each channel pair in radians, with scaling applied.

    theta^(-2i / rotary_dim) for pair i; `rope_scaling` interpolates between that and the same
    divided by `factor`, pair by pair.

    In float32 whatever the precision of the network: published models were trained with the float32
    values, and more exact ones would make them different functions.
    """
    width = rotary_dim(model)
    channels = torch.arange(0, width, 2, dtype=torch.float32)
    frequencies = 1 / model.rope_theta ** (channels / width)
    scaling = model.rope_scaling
    if scaling is None:
        return frequencies
    # Weight of the unscaled frequency: 1 leaves a pair alone, 0 divides it by the factor.
    match scaling.rope_type:
        case "linear":
            weight = torch.zeros_like(frequencies)
        case "llama3":
            weight = _llama3_ramp(frequencies, scaling)
        case "yarn":
            weight = _yarn_ramp(width, model.rope_theta, scaling)
    return weight * frequencies + (1 - weight) * (frequencies / scaling.factor)


def attention_scaling(model: ModelConfig) -> float:
    """Return the factor of rotated channels: YaRN's 0.1 ln(factor) + 1 (arXiv 2309.00071), else 1.

    It multiplies queries and keys, so attention logits grow by its square.
    """
    scaling = model.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    return 0.1 * math.log(scaling.factor) + 1


def _llama3_ramp(
    frequencies: Float[Tensor, " pairs"], scaling: RopeScaling
) -> Float[Tensor, " pairs"]:
    """Return Llama 3.1's weights, linear in the number of rotations within the original context.

    1 for pairs that rotate at least `high_freq_factor` times, 0 at most `low_freq_factor` times.
    """
    low, high, original_positions = _bounds(scaling)
    num_rotations = original_positions / (2 * math.pi / frequencies)
    return ((num_rotations - low) / (high - low)).clamp(0, 1)


def _yarn_ramp(width: int, base: float, scaling: RopeScaling) -> Float[Tensor, " pairs"]:
    """Return YaRN's weights, linear in the pair index between the two bounds.

    The bounds are pair indices, rounded outwards; as in HF, the upper one is clamped to width - 1
    although there are only width / 2 pairs.
    """
    low, high, original_positions = _bounds(scaling)

    def dim_for_num_rotations(num_rotations: float) -> float:
        """Solve original_positions * base^(-2i / width) = 2 pi * num_rotations for pair i."""
        ratio = original_positions / (num_rotations * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(base))

    first = max(math.floor(dim_for_num_rotations(high)), 0)
    last = min(math.ceil(dim_for_num_rotations(low)), width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float32)
    # 1e-3 avoids 0 / 0 if both bounds round to the same pair; the ramp is then a step.
    return 1 - ((pairs - first) / (last - first or 1e-3)).clamp(0, 1)


def _bounds(scaling: RopeScaling) -> tuple[float, float, int]:
    """Return the bounds of the ramp in rotations, and the original number of positions."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if scaling.rope_type == "yarn":
        low, high = scaling.beta_slow, scaling.beta_fast
    original_positions = scaling.original_max_position_embeddings
    assert low is not None, "the recipe's rules require these three for llama3 and yarn"
    assert high is not None
    assert original_positions is not None
    return low, high, original_positions


def rotation_at(
    positions: Int[Tensor, "batch rows"],
    frequencies: Float[Tensor, " pairs"],
    dtype: torch.dtype,
    *,
    scale: float = 1.0,
) -> RotaryCosSin:
    """Return the rotation of rows at the given positions.

    Args:
        positions: position of each row in its document.
        frequencies: from `inverse_frequencies`.
        dtype: type of the result. Angles are computed in float32 at least: bfloat16 has 8 bits of
            mantissa and could not tell position 256 from 257.
        scale: factor of cosines and sines, from `attention_scaling`.
    """
    wide = torch.promote_types(dtype, torch.float32)
    angles = positions.t().unsqueeze(-1).to(wide) * frequencies.to(wide)
    angles = angles.unsqueeze(2)  # broadcast over heads
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return RotaryCosSin(cos.to(dtype), sin.to(dtype))
