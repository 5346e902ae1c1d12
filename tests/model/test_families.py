"""Left to right, every model family equals its `transformers` implementation up to rounding."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.source import ArmdSettings
from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.config.schema import ParallelConfig
from tests.support.hf_folders import CONFIGS, VOCAB, make_model
from tests.support.networks import batch_of
from tests.support.precise import AllDouble

LENGTH = 24  # beyond the original context of scaled rotary embeddings, within sliding windows
TOKENS = np.random.default_rng(0).integers(0, VOCAB, size=(2, LENGTH + 1))


def make_checkpoint(folder: Path, name: str, groups: ProcessGroupCollection) -> torch.nn.Module:
    """Convert a model of the family to the checkpoint `folder`/armd; return the model."""
    model = make_model(name)
    model.save_pretrained(folder / "hf")
    # The last token is never an input, so it may lie outside of a sliding window.
    settings = ArmdSettings(max_positions=LENGTH if "window" in name else None)
    request = ConversionRequest(
        hf=folder / "hf", output=folder / "armd", settings=settings, parallel=ParallelConfig()
    )
    convert(request, groups=groups)
    return model


def logits(
    groups: ProcessGroupCollection, folder: Path, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the logits of every next token, by the number of streams that run."""
    network = load_network(open_checkpoint(folder / "armd"), groups=groups, dtype=dtype)
    batch = batch_of(TOKENS, np.arange(LENGTH + 1)[None].repeat(len(TOKENS), axis=0))
    two_streams = dataclasses.replace(batch, is_left_to_right=False)
    assert network.can_skip_content_stream(batch)
    assert not network.can_skip_content_stream(two_streams)
    with torch.no_grad():
        return {"one": network.logits(batch), "two": network.logits(two_streams)}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(
    tmp_path: Path, name: str, groups: ProcessGroupCollection
) -> None:
    model, inputs = make_checkpoint(tmp_path, name, groups), torch.from_numpy(TOKENS[:, :-1])
    for dtype, atol in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        with torch.no_grad(), AllDouble() if dtype is torch.float64 else nullcontext():
            expected = model.to(dtype)(inputs).logits
        assert expected.dtype is dtype
        for actual in logits(groups, tmp_path, dtype).values():
            torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
