"""Files that an evaluation leaves: whole, readable, or not at all."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from armd_scale.errors import ArmdError
from armd_scale.eval.likelihood import Likelihood, Scores
from armd_scale.eval.output import summary, write_dump, write_json

FOUND = Likelihood(
    order="strided-ar:2",
    nll_nats_per_token=1.25,
    perplexity=math.exp(1.25),
    standard_error=0.03125,
    num_tokens=96,
    bits_per_byte=0.5,
)


def scores(first, count):
    generator = torch.Generator().manual_seed(first)
    return Scores(
        first,
        torch.randint(0, 9, (count, 4), generator=generator),
        torch.randint(0, 4, (count, 4), generator=generator, dtype=torch.int32),
        torch.randn(count, 3, generator=generator),
    )


def test_json_holds_the_figures_under_their_names(tmp_path):
    write_json(tmp_path / "found.json", FOUND)
    assert json.loads((tmp_path / "found.json").read_text()) == {
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


def test_the_line_for_people_names_its_units():
    assert summary(FOUND) == (
        "strided-ar:2  1.2500 nats/token (standard error 0.0312)  perplexity 3.49  0.5000 bits/byte"
        "  96 tokens"
    )
    more = dataclasses.replace(FOUND, standard_error_over_orders=0.25, perplexity_per_word=9.0)
    assert "(standard error 0.0312, over orders 0.2500)  perplexity 3.49  9.00 per" in summary(more)
    bare = Likelihood(
        order="l2r",
        nll_nats_per_token=0.0,
        perplexity=1.0,
        standard_error=None,
        num_tokens=1,
        bits_per_byte=None,
    )
    assert summary(bare) == "l2r  0.0000 nats/token  perplexity 1.00  1 tokens"


def test_the_dump_is_in_order_of_windows(groups, tmp_path):
    path = tmp_path / "dump.safetensors"
    first, second = scores(0, 2), scores(2, 1)
    write_dump(path, [second, first], groups=groups)
    held = load_file(path)
    assert {name: tensor.shape for name, tensor in held.items()} == {
        "tokens": (3, 4),
        "block": (3, 4),
        "logprob": (3, 3),
    }
    for name, tensor in held.items():
        assert torch.equal(tensor, torch.cat([getattr(first, name), getattr(second, name)])), name


def test_a_file_that_cannot_be_written_ends_in_a_sentence_and_leaves_nothing(groups, tmp_path):
    (tmp_path / "taken").mkdir()
    for write in (
        lambda path: write_json(path, FOUND),
        lambda path: write_dump(path, [scores(0, 1)], groups=groups),
    ):
        with pytest.raises(ArmdError, match=r"cannot write .*taken \(Is a directory\)"):
            write(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("old")
    write_json(path, FOUND)
    assert json.loads(path.read_text())["num_tokens"] == 96
