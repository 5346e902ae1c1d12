"""Requests, met or refused before any work is done; tests/tools types some of them."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import run_command
from armd_scale.eval.evaluate import EvalRequest, evaluate_checkpoint, prepare, run_prepared
from armd_scale.generation import Sampling
from armd_scale.parallel.environment import read_environment
from tests.support.held_out import recipe_of, write_place

LAMBADA = {"data": None, "task": ("lambada", Path("text"))}
INFILL = {"data": None, "task": ("infill", Path("stories"))}


@pytest.fixture(scope="module")
def place(groups, tmp_path_factory):
    folder = write_place(tmp_path_factory.mktemp("place"), groups)
    (folder / "empty").write_text("")
    (folder / "text").write_text("the quick brown fox\n" * 9)
    (folder / "stories").write_text('{"before": "", "middle": "the fox", "after": "."}\n')
    return folder


@pytest.fixture
def evaluated(place, groups):
    return partial(evaluate_in, groups, place)


def evaluate_in(groups, place, **changes):
    names = {"checkpoint": str(place / "run"), "data": str(place / "valid"), "order": "random"}
    return run_prepared(prepare(EvalRequest(**{**names, **changes})), groups, torch.device("cpu"))


def test_several_orders_of_each_window(evaluated):
    """Mean and standard errors over two draws of three windows, by hand from single ones."""
    seed = recipe_of().run.seed
    alone = [
        [evaluated(seed=seed + k, samples=n).nll_nats_per_token * n for n in (1, 2, 3)]
        for k in range(2)
    ]
    nats = np.diff(alone, prepend=0, axis=1)  # [draw, window], nats per token
    found = evaluated(samples=3, orders_per_sample=2)
    assert (found.orders_per_sample, found.num_tokens) == (2, 48)
    assert found.nll_nats_per_token == pytest.approx(nats.mean(), rel=1e-6)
    over_orders = np.sqrt((nats.var(axis=0, ddof=1) / 2).sum()) / 3
    assert found.standard_error_over_orders == pytest.approx(over_orders, rel=1e-4)
    over_windows = nats.mean(axis=0).std(ddof=1) / np.sqrt(3)
    assert found.standard_error == pytest.approx(over_windows, rel=1e-4)


def test_strides_score_the_tail_too(evaluated):
    found = evaluated(order="l2r", stride=4)
    assert found.num_tokens == 174
    assert found.nll_nats_per_token != evaluated(order="l2r").nll_nats_per_token


def test_a_text_file_counts_its_words_and_bytes(groups, tmp_path_factory):
    folder = write_place(tmp_path_factory.mktemp("text"), groups, vocab_size=280)
    (folder / "text").write_text("the quick <unk> 's fox\n" * 9)
    how = {"checkpoint": str(folder / "run"), "data": None, "text": folder / "text"}
    found = evaluate_in(groups, folder, **how, detokenise="ptb", order="l2r")
    nats = found.nll_nats_per_token * found.num_tokens
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / (23 * 9))
    assert found.perplexity_per_word == pytest.approx(math.exp(nats / 45))
    tokens = load_tokenizer(folder / "tokenizer").encode_batch(["the quick ?'s fox\n" * 9])[0]
    assert found.num_tokens == len(tokens)
    part = evaluate_in(groups, folder, **how, order="l2r", samples=1)
    assert part.perplexity_per_word is None


def test_how_middles_are_drawn(place, monkeypatch):
    monkeypatch.chdir(place)

    def sampling(**changes):
        return prepare(
            EvalRequest(checkpoint="run", order="random", **INFILL, **changes)
        ).task.sampling

    assert sampling() == Sampling(temperature=1.0, seed=recipe_of().run.seed)
    assert sampling(temperature=0.0, seed=9) == Sampling(temperature=0.0, seed=9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"order": "stride:2"}, "an order must be one of .* the nearest is strided:S"),
        ({"order": "strided-ar:0"}, "numbers of order strided-ar must be whole numbers >= 1"),
        ({"checkpoint": "nothing"}, "no valid checkpoint in nothing"),
        ({"data": "nothing"}, "nothing.bin does not exist"),
        ({"seq_length": 17}, "must fit the positions of the model, .* --seq-length 16 or less"),
        ({"json": Path("no/found.json")}, "--json must name a file in an existing folder"),
        ({"data": None}, "one of --data, --text and --task must be given"),
        ({"text": Path("text")}, "one of --data, --text and --task must be given"),
        ({"stride": 3, "order": "random"}, "--stride needs --order l2r"),
        ({"stride": 9, "seq_length": 8}, "--stride must be at most --seq-length"),
        ({"orders_per_sample": 2, "dump": Path("dump")}, "--dump holds one order"),
        ({"detokenise": "ptb"}, "--detokenise is for --text"),
        ({"data": None, "task": ("piqa", Path("x"))}, "--task must be lambada FILE or infill F"),
        ({**LAMBADA, "orders_per_sample": 2}, "--task goes without --dump, --stride and --orders"),
        ({**LAMBADA, "stride": 16, "seq_length": 16}, "--task goes without --dump, --stride and"),
        ({**LAMBADA, "dump": Path("dump")}, "--task goes without --dump, --stride and --orders"),
        ({**INFILL, "orders_per_sample": 2}, "--task goes without --dump, --stride and --orders"),
        ({**INFILL, "detokenise": "ptb"}, "--detokenise is for --text"),
        ({**LAMBADA, "order": "random"}, "--task lambada needs --order l2r"),
        ({**LAMBADA, "seed": 3}, "--task lambada draws nothing, so leave out --seed"),
        ({**LAMBADA, "temperature": 0.0}, "--temperature is for --task infill"),
        ({"temperature": 0.0}, "--temperature is for --task infill"),
        ({**INFILL, "temperature": -1.0}, "temperature must be 0 .greedy. or more"),
        ({**INFILL, "seq_length": 17}, "must fit the positions of the model, .* --seq-length 16"),
        ({**INFILL, "task": ("infill", Path("none"))}, "none must be a file of JSON lines"),
        ({"data": None, "text": Path("none")}, "--text must be a file in UTF-8, and none cannot"),
        ({"data": None, "text": Path("empty")}, "--text must hold some text, and empty is"),
        ({"dump": Path("no/dump")}, "--dump must name a file in an existing folder"),
    ],
)
def test_bad_input_ends_in_one_sentence(place, monkeypatch, capsys, changes, sentence):
    monkeypatch.chdir(place)
    request = EvalRequest(**{"checkpoint": "run", "data": "valid", "order": "l2r", **changes})
    with pytest.raises(SystemExit, match=r"^2$"):
        run_command(lambda: evaluate_checkpoint(request, read_environment()) and None)
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(sentence, err), err
