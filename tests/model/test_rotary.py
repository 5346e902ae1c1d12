"""Rotary embedding: angles, relative distances, and the scaling rules."""

import dataclasses
import math

import pytest
import torch

from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import RopeScaling
from armd_scale.model.rotary import attention_scaling, inverse_frequencies, rotation_at
from tests.support.networks import LLAMA as SMALL_LLAMA

LLAMA31 = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
YARN = RopeScaling(
    rope_type="yarn",
    factor=4.0,
    beta_slow=1.0,
    beta_fast=32.0,
    original_max_position_embeddings=32768,
)
LLAMA = resolve_model(SMALL_LLAMA)
WIDE = resolve_model(dataclasses.replace(SMALL_LLAMA, hidden=512, heads=4, rope_theta=5e5))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rotate(vector, position, model=LLAMA):
    frequencies = inverse_frequencies(model)
    rotation = rotation_at(torch.tensor([[position]]), frequencies, torch.float64)
    return rotation(vector.view(1, 1, 1, -1)).flatten()


def test_each_pair_rotates_by_position_times_frequency():
    x = torch.randn(8, dtype=torch.float64)
    rotated = rotate(x, 5)
    for i in range(4):
        angle = 5 * 10000.0 ** (-2 * i / 8)
        pair = complex(x[i], x[i + 4]) * complex(math.cos(angle), math.sin(angle))
        # Frequencies are float32.
        assert rotated[i].item() == pytest.approx(pair.real, abs=1e-5)
        assert rotated[i + 4].item() == pytest.approx(pair.imag, abs=1e-5)


def test_channels_after_the_rotary_ones_are_unchanged():
    x = torch.randn(8, dtype=torch.float64)
    rotated = rotate(x, 5, dataclasses.replace(LLAMA, partial_rotary_factor=0.5))
    assert torch.equal(rotated[4:], x[4:])
    narrow = dataclasses.replace(LLAMA, head_dim=4)
    assert torch.equal(rotated[:4], rotate(x[:4], 5, narrow))


def test_products_depend_only_on_the_distance():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    near = rotate(q, 9) @ rotate(k, 4)
    torch.testing.assert_close(rotate(q, 905) @ rotate(k, 900), near, atol=1e-10, rtol=0)
    assert abs(rotate(q, 9) @ rotate(k, 5) - near) > 1e-3


def test_position_zero_rotates_nothing():
    x = torch.randn(8, dtype=torch.float64)
    assert torch.equal(rotate(x, 0), x)


def test_every_row_rotates_by_its_own_position():
    positions = torch.tensor([[3, 0, 7], [1, 1, 2]])
    rotation = rotation_at(positions, inverse_frequencies(LLAMA), torch.float64)
    x = torch.randn(3, 2, 4, 8, dtype=torch.float64)
    rotated = rotation(x)
    for row in range(3):
        for sample in range(2):
            for head in range(4):
                expected = rotate(x[row, sample, head], int(positions[sample, row]))
                torch.testing.assert_close(rotated[row, sample, head], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(rotation.rows(1, 3)(x[1:]), rotated[1:], atol=0, rtol=0)


def test_llama3_scaling_follows_the_published_rule():
    plain = inverse_frequencies(WIDE)
    scaled = inverse_frequencies(dataclasses.replace(WIDE, rope_scaling=LLAMA31))
    kinds = set()
    for before, after in zip(plain.tolist(), scaled.tolist(), strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4.0:
            kind, expected = "short", before
        elif wavelength > 8192 / 1.0:
            kind, expected = "long", before / 8.0
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            kind, expected = "between", (1 - smooth) * before / 8.0 + smooth * before
        kinds.add(kind)
        assert after == pytest.approx(expected, rel=1e-6)
    assert kinds == {"short", "between", "long"}


def test_linear_scaling_divides_every_frequency():
    linear = dataclasses.replace(WIDE, rope_scaling=RopeScaling(rope_type="linear", factor=8.0))
    torch.testing.assert_close(inverse_frequencies(linear) * 8, inverse_frequencies(WIDE))
    assert attention_scaling(linear) == attention_scaling(WIDE) == 1


def test_yarn_scaling_is_linear_in_the_pair_index_between_its_bounds():
    """Of 64 pairs, those before index 24.98 rotate at least 32 times in 32,768 tokens."""
    yarn = dataclasses.replace(WIDE, rope_scaling=YARN)
    ratio = inverse_frequencies(WIDE) / inverse_frequencies(yarn)
    first = 64 * math.log(32768 / (32 * 2 * math.pi)) / math.log(5e5)
    last = 64 * math.log(32768 / (2 * math.pi)) / math.log(5e5)
    first, last = math.floor(first), math.ceil(last)
    assert (first, last) == (24, 42)
    torch.testing.assert_close(ratio[: first + 1], torch.ones(first + 1))
    torch.testing.assert_close(ratio[last:], torch.full((64 - last,), 4.0))
    middle = 1 / ratio[first : last + 1]
    torch.testing.assert_close(middle, torch.linspace(1, 0.25, last - first + 1))
    assert attention_scaling(yarn) == pytest.approx(1 + 0.1 * math.log(4))


def test_half_precision_rotations_use_float32_angles():
    """At position 100,000 an angle in bfloat16 would be wrong by several full rotations."""
    positions, frequencies = torch.tensor([[100_000]]), inverse_frequencies(LLAMA)
    precise = rotation_at(positions, frequencies, torch.float64)
    for dtype, error in ((torch.bfloat16, 2**-8), (torch.float32, 0.01)):
        rotation = rotation_at(positions, frequencies, dtype)
        assert rotation.cos.dtype is dtype
        torch.testing.assert_close(rotation.cos.double(), precise.cos, atol=error, rtol=0)
        torch.testing.assert_close(rotation.sin.double(), precise.sin, atol=error, rtol=0)
