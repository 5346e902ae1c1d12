"""What is true of likelihoods under drawn orders, of a network that was trained for a moment."""

import itertools
import math

import numpy as np
import pytest
import torch

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.data.windows import TokenWindows
from armd_scale.eval.evaluate import EvalRequest, prepare, run_prepared
from armd_scale.order.policies import RandomPermutation
from tests.support import cli as runs
from tests.support.networks import batch_of, log_probs_by_position

N, WINDOWS, DRAWS = 4, 24, 16
UNIFORM = math.log(runs.VOCAB)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run trained on random orders of a text in which a token mostly decides the next."""
    folder = tmp_path_factory.mktemp("run")
    text = runs.write_text(folder / "text")
    recipe = runs.tiny_recipe(
        folder, text, order=RandomPermutation(), train__steps=150, checkpoint__every_steps=150
    )
    runs.train(recipe, folder)
    return folder / "run", text


@pytest.fixture(scope="module")
def exact(run, groups):
    """Nats of each window under each of the 24 orders of its targets, [order, window]."""
    network = load_network(open_checkpoint(run[0]), groups=groups)
    windows = TokenWindows(run[1], N)
    tokens = np.stack([windows.window(number) for number in range(WINDOWS)])
    nats = []
    for order in itertools.permutations(range(1, N + 1)):
        block = np.tile(np.array([0, *order], dtype=np.int32), (WINDOWS, 1))
        found = log_probs_by_position(network, batch_of(tokens, block))
        nats.append([-sum(value.item() for value in window.values()) for window in found])
    return np.array(nats)


@pytest.fixture(scope="module")
def drawn(run, groups):
    request = EvalRequest(
        checkpoint=str(run[0]),
        data=run[1],
        order="random",
        orders_per_sample=DRAWS,
        samples=WINDOWS,
        seq_length=N,
    )
    return run_prepared(prepare(request), groups, torch.device("cpu"))


def test_the_mean_over_draws_is_the_expectation_over_all_orders(exact, drawn):
    """Within four of the standard errors that it gives, which are those of the enumeration."""
    expected = exact.mean() / N
    spread = math.sqrt((exact.var(axis=0) / DRAWS).sum()) / (N * WINDOWS)
    assert drawn.standard_error_over_orders == pytest.approx(spread, rel=0.25)
    assert abs(drawn.nll_nats_per_token - expected) < 4 * drawn.standard_error_over_orders


def test_it_bounds_the_likelihood_of_the_mixture_and_that_of_the_best_order(exact, drawn):
    """NELBO >= -log of the mixture >= NLL of each window's best order, and >= the best order's."""
    slack = 4 * drawn.standard_error_over_orders
    nelbo = drawn.nll_nats_per_token
    mixture = -np.log(np.exp(-exact).mean(axis=0)).mean() / N
    assert nelbo + slack >= mixture >= exact.min(axis=0).mean() / N
    best_order = exact.mean(axis=1).min() / N
    assert nelbo + slack >= best_order
    # Something was learned, and orders differ by more than the error: else this would say nothing.
    assert nelbo < 0.9 * UNIFORM
    assert nelbo - slack > best_order
