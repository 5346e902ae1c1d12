"""Rotary position embedding for rows that carry their own positions.

Sorting by slot scatters positions, so the angles are looked up per row instead of counted off; they
are computed once per forward and shared by all layers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd_scale.config.derive import head_dim
from armd_scale.config.schema import ModelConfig


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the rows' angles, in the dtype of the heads that they turn."""

    cos: Float[Tensor, "rows batch 1 head_dim"]
    sin: Float[Tensor, "rows batch 1 head_dim"]

    def __call__(
        self, x: Float[Tensor, "rows batch heads head_dim"]
    ) -> Float[Tensor, "rows batch heads head_dim"]:
        """Turns every pair (x_i, x_{i + head_dim/2}) by its angle (the rotate-half convention)."""
        low, high = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-high, low), dim=-1) * self.sin

    def rows(self, start: int, stop: int) -> "Rotation":
        """The rotation of the rows start..stop-1."""
        return Rotation(self.cos[start:stop], self.sin[start:stop])


def inverse_frequencies(model: ModelConfig) -> Float[Tensor, " half_head_dim"]:
    """Radians per position of each pair, float64; with Llama 3.1's scaling where asked for."""
    dim = head_dim(model)
    frequencies = model.rope_base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    scaling = model.rope_scaling
    if scaling is None:
        return frequencies
    # Wavelengths longer than the original context are stretched by `factor`, short ones are kept,
    # and those between are interpolated (Llama 3.1's published rule).
    wavelengths = 2 * torch.pi / frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_max_positions / wavelengths
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotation_at(
    positions: Int[Tensor, "batch rows"],
    frequencies: Float[Tensor, " half_head_dim"],
    dtype: torch.dtype,
) -> Rotation:
    """The rotation of rows at `positions`; angles in float32 at least, whatever `dtype`."""
    precise = torch.promote_types(dtype, torch.float32)
    angles = positions.t().unsqueeze(-1).to(precise) * frequencies.to(precise)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
