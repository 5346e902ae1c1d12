"""Decoding with the cache equals teacher forcing of the text that it generates."""

import dataclasses

import numpy as np
import pytest
import torch

from armd_scale.generation import (
    GenerationSpec,
    Sampling,
    Strategy,
    generate_from_specs,
    generate_tokens,
)
from tests.support.networks import GPT2, LLAMA, OTHERS, batch_of, build
from tests.support.rescoring import assert_rescores, random_prompts
from tests.support.windows import VOCAB, logits_by_index

QUERIES = ["anchor", "prefix", "learned", "anchor+prefix"]
SHAPES = {
    **OTHERS,
    "gpt2 prefix": dataclasses.replace(GPT2, query="prefix"),
    "all two-stream": dataclasses.replace(LLAMA, two_stream_layers=4),
    "one two-stream": dataclasses.replace(LLAMA, two_stream_layers=1),
    "ar stack": dataclasses.replace(LLAMA, two_stream_layers=0),
    "ar stack prefix": dataclasses.replace(LLAMA, two_stream_layers=0, query="anchor+prefix"),
}
STREAMS = [1, pytest.param(2, marks=pytest.mark.slow(minutes=0.2)), 4]
NUM_TOKENS = 18  # not a multiple of 4 streams
GREEDY = Sampling(temperature=0)


def assert_decodes(network, *, streams, prompt_length):
    prompts = random_prompts(*[prompt_length] * 3)
    output = generate_tokens(
        network, prompts, num_tokens=NUM_TOKENS, strategy=Strategy(streams=streams)
    )
    assert output.rounds == streams + -(-NUM_TOKENS // streams) - 1
    for prompt, sample in zip(prompts, output.samples, strict=True):
        assert (sample.tokens[:prompt_length] == prompt).all()
        assert sample.generated.sum() == NUM_TOKENS == len(sample.tokens) - prompt_length
        assert (sample.logprob[sample.generated] < 0).all()
    assert_rescores(network, output)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("prompt_length", [1, 7])
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
def test_rescoring_agrees(groups, query, upper, streams, prompt_length):
    model = dataclasses.replace(LLAMA, query=query, upper_visibility=upper)
    assert_decodes(build(model, groups), streams=streams, prompt_length=prompt_length)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rescoring_agrees_for_other_architectures(groups, shape, streams):
    assert_decodes(build(SHAPES[shape], groups), streams=streams, prompt_length=5)


@torch.no_grad()
def decode_without_cache(network, prompt, *, num_tokens, streams):
    """Decode greedily by recomputing the whole text for every block; also return the cached run."""
    cached = generate_tokens(
        network,
        [prompt],
        num_tokens=num_tokens,
        strategy=Strategy(streams=streams),
        sampling=GREEDY,
    )
    block = cached.samples[0].block
    tokens = np.concatenate((prompt, np.zeros(num_tokens, dtype=np.int64)))
    logprob = np.zeros(len(tokens))
    for block_index in range(len(prompt), block.max() + 1):
        logits = logits_by_index(network, batch_of(tokens[None], block[None]))[0]
        for p in np.flatnonzero(block == block_index):
            tokens[p] = logits[p].argmax()
            logprob[p] = logits[p].log_softmax(dim=-1).max()
    return tokens, logprob, cached.samples[0]


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("prompt_length", [1, 6])
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
def test_cached_equals_uncached(groups, query, upper, streams, prompt_length):
    network = build(dataclasses.replace(LLAMA, query=query, upper_visibility=upper), groups)
    (prompt,) = random_prompts(prompt_length, seed=1)
    tokens, logprob, sample = decode_without_cache(network, prompt, num_tokens=10, streams=streams)
    assert (sample.tokens == tokens).all()
    np.testing.assert_allclose(sample.logprob, logprob, atol=1e-4)


@pytest.mark.parametrize("query", QUERIES)
def test_greedy_single_stream_is_the_left_to_right_argmax(groups, query):
    network = build(dataclasses.replace(LLAMA, query=query), groups)
    (prompt,) = random_prompts(4)
    (sample,) = generate_tokens(network, [prompt], num_tokens=12, sampling=GREEDY).samples
    with torch.no_grad():
        logits = logits_by_index(network, batch_of(sample.tokens[None], np.arange(16)[None]))
    assert (logits[0, 4:].argmax(dim=-1).numpy() == sample.tokens[4:]).all()


@pytest.mark.parametrize("prompt_length", [1, 7])
@pytest.mark.parametrize(("streams", "num_rounds"), [(1, 18), (2, 10), (3, 8), (4, 8)])
def test_each_round_is_one_forward_and_each_row_is_fed_once(
    groups, streams, num_rounds, prompt_length
):
    network = build(LLAMA, groups)
    rows = []
    network.layers["0"].register_forward_hook(
        lambda layer, inputs, out: rows.append(len(inputs[0]))
    )
    output = generate_tokens(
        network,
        random_prompts(prompt_length),
        num_tokens=NUM_TOKENS,
        strategy=Strategy(streams=streams),
    )
    assert len(rows) == output.rounds == num_rounds
    # Content and query rows of all tokens once; left to right, query rows alone.
    num_fed = prompt_length + NUM_TOKENS - 1
    assert sum(rows) == num_fed if streams == 1 else 2 * num_fed


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("lengths", [(20, 20), (20, 14)])
def test_rescoring_agrees_for_holes_anywhere_in_any_blocks(groups, lengths, query, upper):
    """Nine holes at random positions, generated in three blocks of three."""
    network = build(dataclasses.replace(LLAMA, query=query, upper_visibility=upper), groups)
    rng = np.random.default_rng(3)
    specs = []
    for length in lengths:
        holes = rng.permutation(np.arange(1, length))[:9]
        block = np.zeros(length, dtype=np.int64)
        block[holes] = np.arange(9) // 3 + 1
        specs.append(GenerationSpec(rng.integers(0, VOCAB, size=length), block, block == 0))
    output = generate_from_specs(network, specs, sampling=Sampling())
    assert output.rounds == 3
    for spec, sample in zip(specs, output.samples, strict=True):
        assert (sample.tokens[spec.known] == spec.tokens[spec.known]).all()
    assert_rescores(network, output)
