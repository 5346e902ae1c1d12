"""Evaluations of small checkpoints, through the functions behind tools/evaluate.py.

Also the properties that likelihoods under random orders must have, checked by enumeration.
"""

import itertools
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import run_command
from armd_scale.eval.evaluate import evaluate_checkpoint, prepare, run_prepared
from armd_scale.eval.likelihood import Likelihood
from armd_scale.eval.request import EvalRequest
from armd_scale.eval.tasks.infilling import InfillTask
from armd_scale.generation import Sampling
from armd_scale.order.policies import RandomPermutation
from armd_scale.parallel.environment import read_environment
from tests.support import cli
from tests.support.eval_data import make_recipe, write_run
from tests.support.networks import batch_of, log_probs_by_position

pytestmark = pytest.mark.slow

INFILL = {"data": None, "task": ("infill", Path("stories"))}
N, NUM_WINDOWS, NUM_DRAWS = 4, 24, 16


@pytest.fixture(scope="module")
def folder(groups, tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("folder"), groups)
    (folder / "empty").write_text("")
    (folder / "text").write_text("the quick brown fox\n" * 9)
    (folder / "stories").write_text('{"before": "", "middle": "the fox", "after": "."}\n')
    return folder


def evaluate_in(groups, folder, **changes):
    options = {"checkpoint": str(folder / "run"), "data": str(folder / "valid"), "order": "random"}
    prepared = prepare(EvalRequest(**{**options, **changes}))
    result = run_prepared(prepared, groups, torch.device("cpu"))
    assert isinstance(result, Likelihood)
    return result


def test_means_and_standard_errors_over_several_orders_per_window(folder, groups):
    """Two draws of three windows, computed from evaluations with a single draw."""
    evaluate = partial(evaluate_in, groups, folder)
    seed = make_recipe().run.seed
    cumulative = [
        [evaluate(seed=seed + k, samples=n).nll_nats_per_token * n for n in (1, 2, 3)]
        for k in range(2)
    ]
    nats = np.diff(cumulative, prepend=0, axis=1)  # [draw, window], nats per token
    result = evaluate(samples=3, orders_per_sample=2)
    assert (result.orders_per_sample, result.num_tokens) == (2, 48)
    assert result.nll_nats_per_token == pytest.approx(nats.mean(), rel=1e-6)
    over_orders = np.sqrt((nats.var(axis=0, ddof=1) / 2).sum()) / 3
    assert result.standard_error_over_orders == pytest.approx(over_orders, rel=1e-4)
    over_windows = nats.mean(axis=0).std(ddof=1) / np.sqrt(3)
    assert result.standard_error == pytest.approx(over_windows, rel=1e-4)


def test_a_stride_scores_the_end_of_the_data_too(folder, groups):
    result = evaluate_in(groups, folder, order="l2r", stride=4)
    assert result.num_tokens == 174
    assert result.nll_nats_per_token != evaluate_in(groups, folder, order="l2r").nll_nats_per_token


def test_figures_of_a_text_file_count_its_words_and_bytes(groups, tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("text"), groups, vocab_size=280)
    (folder / "text").write_text("the quick <unk> 's fox\n" * 9)
    options = {"checkpoint": str(folder / "run"), "data": None, "text": folder / "text"}
    result = evaluate_in(groups, folder, **options, detokenizer="ptb", order="l2r")
    nats = result.nll_nats_per_token * result.num_tokens
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / (23 * 9))
    assert result.perplexity_per_word == pytest.approx(math.exp(nats / 45))
    tokens = load_tokenizer(folder / "tokenizer").encode_batch(["the quick ?'s fox\n" * 9])[0]
    assert result.num_tokens == len(tokens)
    first_window = evaluate_in(groups, folder, **options, order="l2r", samples=1)
    assert first_window.perplexity_per_word is None


def test_sampling_options_of_the_infilling_task(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def sampling(**changes):
        request = EvalRequest(checkpoint="run", order="random", **INFILL, **changes)
        task = prepare(request).examples
        assert isinstance(task, InfillTask)
        return task.sampling

    assert sampling() == Sampling(temperature=1.0, seed=make_recipe().run.seed)
    assert sampling(temperature=0.0, seed=9) == Sampling(temperature=0.0, seed=9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"order": "stride:2"}, "an order must be one of .* the nearest is strided:S"),
        ({"order": "strided-ar:0"}, "numbers of order strided-ar must be whole numbers >= 1"),
        ({"checkpoint": "nothing"}, "no valid checkpoint in nothing"),
        ({"data": "nothing"}, "nothing.bin does not exist"),
        ({"data": None}, "exactly one of --data, --text and --task must be given"),
        ({"seq_length": 17}, "must fit the positions of the model, .* --seq-length 16 or less"),
        ({"json": Path("no/found.json")}, "--json must name a file in an existing folder"),
        ({"dump": Path("no/dump")}, "--dump must name a file in an existing folder"),
        ({**INFILL, "temperature": -1.0}, "temperature must be 0 .greedy. or more"),
        ({**INFILL, "seq_length": 17}, "must fit the positions of the model, .* --seq-length 16"),
        ({**INFILL, "task": ("infill", Path("none"))}, "none must be a UTF-8 file of JSON lines"),
        ({"data": None, "text": Path("none")}, "--text must be a UTF-8 file, but none cannot"),
        ({"data": None, "text": Path("empty")}, "--text must contain some text, but empty is"),
    ],
)
def test_invalid_input_is_one_sentence_and_status_2(folder, monkeypatch, capsys, changes, sentence):
    monkeypatch.chdir(folder)
    request = EvalRequest(**{"checkpoint": "run", "data": "valid", "order": "l2r", **changes})

    def main() -> None:
        evaluate_checkpoint(request, read_environment())

    with pytest.raises(SystemExit, match=r"^2$"):
        run_command(main)
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(sentence, err), err


@pytest.fixture(scope="module")
def random_order_run(tmp_path_factory):
    """A run folder and its shards: random order, and a text where most tokens follow a rule."""
    folder = tmp_path_factory.mktemp("run")
    text = cli.write_text(folder / "text")
    recipe = cli.tiny_recipe(
        folder, text, order=RandomPermutation(), train__steps=150, checkpoint__every_steps=150
    )
    cli.train(recipe, folder)
    return folder / "run", text


@pytest.fixture(scope="module")
def exact_nats(random_order_run, groups):
    """Nats of each window under each of the 24 orders of its targets, [order, window]."""
    run, text = random_order_run
    network = load_network(open_checkpoint(run), groups=groups)
    windows = TokenWindows(text, N)
    tokens = np.stack([windows.window(index) for index in range(NUM_WINDOWS)])
    nats = []
    for order in itertools.permutations(range(1, N + 1)):
        block = np.tile(np.array([0, *order], dtype=np.int32), (NUM_WINDOWS, 1))
        logprobs = log_probs_by_position(network, batch_of(tokens, block))
        nats.append([-sum(value.item() for value in window.values()) for window in logprobs])
    return np.array(nats)


@pytest.fixture(scope="module")
def estimate(random_order_run, groups):
    """The likelihood estimated from random draws of the order."""
    run, text = random_order_run
    request = EvalRequest(
        checkpoint=str(run),
        data=text,
        order="random",
        orders_per_sample=NUM_DRAWS,
        samples=NUM_WINDOWS,
        seq_length=N,
    )
    return run_prepared(prepare(request), groups, torch.device("cpu"))


def test_the_mean_over_draws_estimates_the_mean_over_all_orders(exact_nats, estimate):
    """Within four standard errors, and the standard error is that of the enumeration."""
    expected = exact_nats.mean() / N
    standard_error = math.sqrt((exact_nats.var(axis=0) / NUM_DRAWS).sum()) / (N * NUM_WINDOWS)
    assert estimate.standard_error_over_orders == pytest.approx(standard_error, rel=0.25)
    assert abs(estimate.nll_nats_per_token - expected) < 4 * estimate.standard_error_over_orders


def test_the_mean_over_draws_bounds_the_mixture_and_the_best_order(exact_nats, estimate):
    """NELBO >= NLL of the mixture >= NLL of each window's best order; NELBO >= best order."""
    tolerance = 4 * estimate.standard_error_over_orders
    nelbo = estimate.nll_nats_per_token
    mixture = -np.log(np.exp(-exact_nats).mean(axis=0)).mean() / N
    assert nelbo + tolerance >= mixture >= exact_nats.min(axis=0).mean() / N
    best_order = exact_nats.mean(axis=1).min() / N
    assert nelbo + tolerance >= best_order
    # The bounds would hold trivially if the network had learned nothing, or if all orders were
    # equal up to the error.
    assert nelbo < 0.9 * math.log(cli.VOCAB)
    assert nelbo - tolerance > best_order
