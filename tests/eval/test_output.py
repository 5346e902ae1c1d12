"""Files of an evaluation: complete and readable, or absent."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from armd_scale.errors import ArmdError
from armd_scale.eval.likelihood import Likelihood, Scores
from armd_scale.eval.output import write_dump, write_result

RESULT = Likelihood(
    order="strided-ar:2",
    nll_nats_per_token=1.25,
    perplexity=math.exp(1.25),
    standard_error=0.03125,
    num_tokens=96,
    bits_per_byte=0.5,
)


def make_scores(first, num_windows):
    generator = torch.Generator().manual_seed(first)
    return Scores(
        first,
        torch.randint(0, 9, (num_windows, 4), generator=generator),
        torch.randint(0, 4, (num_windows, 4), generator=generator, dtype=torch.int32),
        torch.randn(num_windows, 3, generator=generator),
    )


def test_json_has_the_figures_by_name(tmp_path):
    write_result(tmp_path / "result.json", RESULT)
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "order": "strided-ar:2",
        "nll_nats_per_token": 1.25,
        "perplexity": math.exp(1.25),
        "standard_error": 0.03125,
        "num_tokens": 96,
        "bits_per_byte": 0.5,
        "orders_per_sample": 1,
        "standard_error_over_orders": None,
        "perplexity_per_word": None,
    }


def test_the_dump_is_in_window_order(groups, tmp_path):
    path = tmp_path / "dump.safetensors"
    first, second = make_scores(0, 2), make_scores(2, 1)
    write_dump(path, [second, first], groups=groups)
    tensors = load_file(path)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "tokens": (3, 4),
        "block": (3, 4),
        "logprob": (3, 3),
    }
    for name, tensor in tensors.items():
        assert torch.equal(tensor, torch.cat([getattr(first, name), getattr(second, name)])), name


def test_a_file_that_cannot_be_written_is_one_error_and_leaves_nothing_behind(groups, tmp_path):
    (tmp_path / "folder").mkdir()
    for write in (
        lambda path: write_result(path, RESULT),
        lambda path: write_dump(path, [make_scores(0, 1)], groups=groups),
    ):
        with pytest.raises(ArmdError, match=r"^cannot write .*folder .*: check that"):
            write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    write_result(path, RESULT)
    assert json.loads(path.read_text())["num_tokens"] == 96
