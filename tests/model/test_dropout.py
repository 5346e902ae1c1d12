"""Dropout masks: their statistics, and that they depend on the sample alone."""

import dataclasses

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.dropout import KeyedDropout, hash32, row_keys
from tests.model.test_likelihood import assert_same_loss, loss_and_gradient
from tests.support.networks import GPT2, LLAMA, QWEN3, build
from tests.support.windows import draw_windows

RATE = 0.2


def kept_channels(*, windows: int = 4, width: int = 512, site: int = 0, seed: int = 0) -> Tensor:
    """Return which channels are kept as 0 and 1, [64 rows, windows, width]."""
    batch = draw_windows("random", (33,), count=windows).batch()
    rows = torch.ones(64, windows, width)
    return (KeyedDropout(RATE, row_keys(batch, seed), layer_site=site)(rows) > 0).double()


def correlation(first: Tensor, second: Tensor) -> float:
    """Return the correlation in units of its standard deviation under independence."""
    deviation = RATE * (1 - RATE)
    product = (first - 1 + RATE) * (second - 1 + RATE)
    return float(product.mean() / deviation * product.numel() ** 0.5)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_dropout_preserves_the_mean(rate: float) -> None:
    keys = hash32(torch.arange(4096, dtype=torch.int32)).view(-1, 2)
    rows = KeyedDropout(rate, keys)(torch.ones(2048, 2, 64))
    assert rows.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    # 4 standard deviations of the mean of 262,144 values
    assert float(rows.mean()) == pytest.approx(1, abs=4 * (rate / (1 - rate) / 2**18) ** 0.5)


def test_rows_channels_and_sites_are_independent() -> None:
    mask = kept_channels()
    spread = (RATE * (1 - RATE)) ** 0.5
    for dims, name in (((1, 2), "row"), ((0, 1), "channel")):
        mean = mask.mean(dims)
        count = mask.numel() / mean.numel()
        assert (mean - 1 + RATE).abs().max() < 5 * spread / count**0.5, name
    # Content rows of a window have different row indices; compare near and distant rows, channels.
    content = mask[:32]
    for distance in (1, 2, 16):
        assert abs(correlation(content[distance:], content[:-distance])) < 4
        assert abs(correlation(content[..., distance:], content[..., :-distance])) < 4
    assert abs(correlation(content[:, 1:], content[:, :-1])) < 4
    assert abs(correlation(content, kept_channels(site=1)[:32])) < 4
    assert abs(correlation(content, kept_channels(seed=1)[:32])) < 4


def test_an_input_bit_flips_half_of_the_hash() -> None:
    values = torch.arange(10_000, dtype=torch.int32)
    for bit in range(31):
        changed = hash32(values) ^ hash32(values ^ (1 << bit))
        flips = (
            torch.stack([(changed >> output_bit) & 1 for output_bit in range(32)]).double().mean(1)
        )
        assert ((flips - 0.5).abs() < 0.1).all(), bit


def test_a_mask_depends_on_the_sample_and_not_on_its_batch() -> None:
    batch = draw_windows("random", (17,), count=3).batch()
    flipped_fields = {
        field.name: getattr(batch, field.name).flip(0)
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    flipped = dataclasses.replace(batch, **flipped_fields)
    assert torch.equal(row_keys(flipped, 5), row_keys(batch, 5).flip(1))
    later = dataclasses.replace(batch, sample_index=batch.sample_index + 2**33)
    assert not (row_keys(later, 5) == row_keys(batch, 5)).any()


def build_network(
    groups: ProcessGroupCollection, shape: str = "llama", **changes: object
) -> ArmdModel:
    model = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2}[shape]
    model = dataclasses.replace(model, **{"dropout": RATE, **changes})  # type: ignore[arg-type]
    return build(model, groups, dtype=torch.float64)


@pytest.mark.parametrize("lengths", [(16,), (5, 1, 9, 4)])
@pytest.mark.parametrize("shape", ["llama", "qwen3", "gpt2"])
def test_one_stream_drops_the_same_channels_as_two_left_to_right(
    groups: ProcessGroupCollection, shape: str, lengths: tuple[int, ...]
) -> None:
    network = build_network(groups, shape)
    batch = draw_windows("l2r", lengths).batch()
    assert network.can_skip_content_stream(batch)
    expected = loss_and_gradient(network, batch)
    for causal in (True, False):
        two = dataclasses.replace(
            batch, is_left_to_right=False, is_plain_causal=causal and batch.is_plain_causal
        )
        assert not network.can_skip_content_stream(two)
        assert_same_loss(loss_and_gradient(network, two), expected)
    without_dropout = loss_and_gradient(build_network(groups, shape, dropout=0.0), batch)
    assert abs(without_dropout[0] - expected[0]) > 1e-3


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_drops_the_same_channels(
    groups: ProcessGroupCollection, recompute: str
) -> None:
    network = build_network(groups)
    batch = draw_windows("strided:3", (16,)).batch()
    expected = loss_and_gradient(network, batch)
    network.recompute = recompute  # type: ignore[assignment]
    assert_same_loss(loss_and_gradient(network, batch), expected)


def test_nothing_is_dropped_outside_of_training(groups: ProcessGroupCollection) -> None:
    network, without_dropout = build_network(groups), build_network(groups, dropout=0.0)
    batch = draw_windows("strided:3", (16,)).batch()
    assert not torch.equal(network(batch), without_dropout(batch))
    with torch.no_grad():
        assert torch.equal(network(batch), without_dropout(batch))
        assert torch.equal(network.logits(batch), without_dropout.logits(batch))
    network.eval()
    assert torch.equal(network(batch), without_dropout(batch))


def test_every_branch_of_every_layer_is_dropped(groups: ProcessGroupCollection) -> None:
    calls = []
    original = KeyedDropout.__call__

    def recorded(self: KeyedDropout, rows: Tensor) -> Tensor:
        calls.append((self.layer_site, len(rows)))
        return original(self, rows)

    network = build_network(groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyedDropout, "__call__", recorded)
        network(draw_windows("random", (17,)).batch())
    # 16 targets: both streams up to the last two-stream layer, which returns query rows only.
    assert calls == [(0, 32), (1, 32), (2, 32), *((site, 16) for site in range(3, 9))]
