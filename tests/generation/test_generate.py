"""Decoding with the cache is teacher forcing of the text that comes out."""

import dataclasses

import numpy as np
import pytest
import torch

from armd_scale.errors import GenerationError
from armd_scale.generation import (
    GenerationSpec,
    Sampling,
    Strategy,
    entropy_bits,
    generate,
    generate_from_specs,
)
from tests.support.networks import GPT2, LLAMA, OTHERS, batch_of, build, log_probs_by_position
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
NUM_TOKENS = 18  # 4 does not divide it
GREEDY = Sampling(temperature=0)


def random_prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, size=length) for length in lengths]


def assert_rescores(network, generation, *, atol=1e-4):
    """Each sample, alone and under its own blocks, has the log-probabilities that were reported."""
    for sample in generation.samples:
        batch = batch_of(sample.tokens[None], sample.block[None])
        with torch.no_grad():
            (expected,) = log_probs_by_position(network, batch)
        places = np.flatnonzero(sample.generated)
        torch.testing.assert_close(
            torch.from_numpy(sample.logprob[places]),
            torch.stack([expected[int(p)] for p in places]).double(),
            atol=atol,
            rtol=0,
        )


def assert_decodes(network, *, streams, prompt_length):
    prompts = random_prompts(*[prompt_length] * 3)
    generation = generate(
        network, prompts, num_tokens=NUM_TOKENS, strategy=Strategy(streams=streams)
    )
    assert generation.rounds == streams + -(-NUM_TOKENS // streams) - 1
    for prompt, sample in zip(prompts, generation.samples, strict=True):
        assert (sample.tokens[:prompt_length] == prompt).all()
        assert sample.generated.sum() == NUM_TOKENS == len(sample.tokens) - prompt_length
        assert (sample.logprob[sample.generated] < 0).all()
    assert_rescores(network, generation)


@pytest.mark.parametrize("prompt_length", [1, 7])
@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
def test_rescoring_agrees(groups, query, upper, streams, prompt_length):
    model = dataclasses.replace(LLAMA, query=query, upper_visibility=upper)
    assert_decodes(build(model, groups), streams=streams, prompt_length=prompt_length)


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_rescoring_agrees_for_other_architectures(groups, shape, streams):
    assert_decodes(build(SHAPES[shape], groups), streams=streams, prompt_length=5)


@torch.no_grad()
def decode_without_cache(network, prompt, *, num_tokens, streams):
    """Greedy decoding that recomputes the whole text for every block."""
    first = generate(
        network,
        [prompt],
        num_tokens=num_tokens,
        strategy=Strategy(streams=streams),
        sampling=GREEDY,
    )
    block = first.samples[0].block
    tokens = np.concatenate((prompt, np.zeros(num_tokens, dtype=np.int64)))
    logprob = np.zeros(len(tokens))
    for number in range(len(prompt), block.max() + 1):
        logits = logits_by_index(network, batch_of(tokens[None], block[None]))[0]
        for p in np.flatnonzero(block == number):
            tokens[p] = logits[p].argmax()
            logprob[p] = logits[p].log_softmax(dim=-1).max()
    return tokens, logprob, first.samples[0]


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
def test_one_greedy_stream_is_the_argmax_of_left_to_right_reading(groups, query):
    network = build(dataclasses.replace(LLAMA, query=query), groups)
    (prompt,) = random_prompts(4)
    (sample,) = generate(network, [prompt], num_tokens=12, sampling=GREEDY).samples
    with torch.no_grad():
        logits = logits_by_index(network, batch_of(sample.tokens[None], np.arange(16)[None]))
    assert (logits[0, 4:].argmax(dim=-1).numpy() == sample.tokens[4:]).all()


@pytest.mark.parametrize("prompt_length", [1, 7])
@pytest.mark.parametrize(("streams", "rounds"), [(1, 18), (2, 10), (3, 8), (4, 8)])
def test_one_forward_a_round(groups, streams, rounds, prompt_length):
    network = build(LLAMA, groups)
    rows = []
    network.layers["0"].register_forward_hook(
        lambda layer, inputs, out: rows.append(len(inputs[0]))
    )
    generation = generate(
        network,
        random_prompts(prompt_length),
        num_tokens=NUM_TOKENS,
        strategy=Strategy(streams=streams),
    )
    assert len(rows) == generation.rounds == rounds
    # Content and query rows of all tokens once; one stream feeds query rows alone.
    fed = prompt_length + NUM_TOKENS - 1
    assert sum(rows) == fed if streams == 1 else 2 * fed


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("query", ["anchor", "anchor+prefix", "learned"])
@pytest.mark.parametrize("sampling", [Sampling(seed=5, top_p=0.9), GREEDY])
def test_a_batch_equals_its_items_one_by_one(groups, query, streams, sampling):
    network = build(dataclasses.replace(LLAMA, query=query), groups, dtype=torch.float64)
    prompts = random_prompts(1, 6, 3, 6)
    arguments = {
        "num_tokens": NUM_TOKENS,
        "strategy": Strategy(streams=streams),
        "sampling": sampling,
    }
    together = generate(network, prompts, **arguments)
    assert_rescores(network, together, atol=1e-10)
    for number, prompt in enumerate(prompts):
        alone = generate(network, [prompt], sample_numbers=[number], **arguments)
        for one, other in zip(alone.samples, [together.samples[number]], strict=True):
            assert (one.tokens == other.tokens).all()
            assert (one.block == other.block).all()
            np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-10)


def test_seeds_and_sample_numbers_decide(groups):
    network = build(LLAMA, groups)
    (prompt,) = random_prompts(3)
    texts = [
        tuple(sample.tokens)
        for seed in (0, 1)
        for sample in generate(
            network,
            [prompt] * 3,
            num_tokens=12,
            strategy=Strategy(streams=2),
            sampling=Sampling(seed=seed),
        ).samples
    ]
    assert len(set(texts)) == 6
    again = generate(
        network, [prompt], num_tokens=12, strategy=Strategy(streams=2), sample_numbers=[2]
    )
    assert tuple(again.samples[0].tokens) == texts[2]


@pytest.mark.parametrize("upper", ["block", "self"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("lengths", [(20, 20), (20, 14)])
def test_given_evidence_anywhere_and_any_blocks(groups, lengths, query, upper):
    """Holes in any position, asked for in groups: an outline is all that it takes."""
    network = build(dataclasses.replace(LLAMA, query=query, upper_visibility=upper), groups)
    rng = np.random.default_rng(3)
    outlines = []
    for length in lengths:
        holes = rng.permutation(np.arange(1, length))[:9]
        block = np.zeros(length, dtype=np.int64)
        block[holes] = np.arange(9) // 3 + 1
        outlines.append(GenerationSpec(rng.integers(0, VOCAB, size=length), block, block == 0))
    generation = generate_from_specs(network, outlines, sampling=Sampling())
    assert generation.rounds == 3
    for outline, sample in zip(outlines, generation.samples, strict=True):
        assert (sample.tokens[outline.known] == outline.tokens[outline.known]).all()
    assert_rescores(network, generation)


def test_every_round_is_told(groups):
    told = []
    generate(
        build(LLAMA, groups),
        random_prompts(1),
        num_tokens=9,
        strategy=Strategy(streams=4),
        on_round=lambda landed: told.append(landed.max_committed),
    )
    assert told == [1, 1, 1, 3, 3]


def test_text_ends_at_the_first_generated_end(groups):
    (prompt,) = random_prompts(3)
    (sample,) = generate(
        build(LLAMA, groups), [prompt], num_tokens=12, strategy=Strategy(streams=3)
    ).samples
    end = int(sample.tokens[9])
    first = 3 + int(np.flatnonzero(sample.tokens[3:] == end)[0])
    cut = sample.until(end)
    assert len(cut.tokens) == len(cut.block) == len(cut.generated) == len(cut.logprob) == first
    assert (cut.tokens == sample.tokens[:first]).all()
    assert len(sample.until(VOCAB).tokens) == 15
    # An end inside the prompt, such as the token that opens the document, ends nothing.
    unseen = next(t for t in prompt if t not in sample.tokens[3:])
    assert len(sample.until(int(unseen)).tokens) == 15


@pytest.mark.parametrize("model", [GPT2, dataclasses.replace(LLAMA, query="prefix")])
def test_texts_longer_than_the_position_tables(groups, model):
    network = build(model, groups, max_positions=16)
    (prompt,) = random_prompts(6)
    assert_rescores(
        network, generate(network, [prompt], num_tokens=10, strategy=Strategy(streams=2))
    )
    with pytest.raises(GenerationError, match=r"at most 16 tokens.* got 17 .* at least 1 fewer"):
        generate(network, [prompt], num_tokens=11)


def test_rotary_positions_have_no_end(groups):
    network = build(LLAMA, groups, max_positions=16)
    assert len(generate(network, random_prompts(1), num_tokens=30).samples[0].tokens) == 31


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there must be a sample to generate, got none"),
        ([np.array([3, VOCAB])], "below the model's vocabulary of 101, got 101"),
        ([np.array([-1, 4])], "below the model's vocabulary of 101, got -1"),
    ],
)
def test_prompts_that_the_model_cannot_read(groups, prompts, message):
    with pytest.raises(GenerationError, match=message):
        generate(build(LLAMA, groups), prompts, num_tokens=3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_model_is_named(groups, temperature):
    network = build(LLAMA, groups)
    with torch.no_grad():
        network.final_norm.weight[0] = torch.nan
    with pytest.raises(GenerationError, match="predictions must be finite"):
        generate(
            network, random_prompts(1), num_tokens=3, sampling=Sampling(temperature=temperature)
        )


def test_entropy_is_in_bits():
    assert entropy_bits(np.array([1, 1, 1])) == 0
    assert entropy_bits(np.array([1, 2, 3, 4])) == 2
    assert entropy_bits(np.array([5, 5, 6, 7])) == 1.5
    assert entropy_bits(np.array([], dtype=np.int64)) == 0
