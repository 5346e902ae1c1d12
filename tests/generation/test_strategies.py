"""Every strategy, on ragged batches, is teacher forcing of the text that comes out."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from armd_scale.config.schema import ParallelConfig
from armd_scale.generation import (
    TO_GENERATE,
    ConfidenceSchedule,
    Sampling,
    Strategy,
    generate,
    infill,
)
from tests.generation.test_generate import assert_rescores, random_prompts
from tests.model.test_weight_init import fresh
from tests.support.networks import LLAMA, batch_of, build
from tests.support.spawn import run_on_ranks
from tests.support.windows import logits_by_index

NUM_TOKENS = 11
GREEDY = Sampling(temperature=0)
DRAWN = Sampling(seed=3, temperature=0.8, top_p=0.9, repetition_penalty=1.3)
STRATEGIES = {
    "one by one": Strategy(),
    "streams": Strategy(streams=4),
    "groups": Strategy(group=3),
    "random order": Strategy(random_order=True),
    "permuted groups": Strategy(random_order=True, group=4),
    "confidence": Strategy(dynamic=ConfidenceSchedule("confidence", 3)),
    "entropy": Strategy(dynamic=ConfidenceSchedule("entropy", 1)),
    "margin": Strategy(dynamic=ConfidenceSchedule("margin", 4)),
    "random": Strategy(dynamic=ConfidenceSchedule("random", 2)),
    "lossless": Strategy(speculative=4),
    "lossless streams": Strategy(speculative=3, streams=3),
    "lossless random order": Strategy(speculative=5, random_order=True),
}
NETWORKS = {
    "anchor": LLAMA,
    "anchor self": dataclasses.replace(LLAMA, upper_visibility="self"),
    "both": dataclasses.replace(LLAMA, query="anchor+prefix"),
    "learned": dataclasses.replace(LLAMA, query="learned", two_stream_layers=4),
}


def random_texts():
    """Texts with 3 holes of 3, 1 and 5 tokens; 1 hole of 2; and 1 hole at the end."""
    texts = random_prompts(20, 9, 14, seed=2)
    for text, holes in zip(
        texts, [[3, 4, 5, 9, 12, 13, 14, 15, 16], [4, 5], [12, 13]], strict=True
    ):
        text[holes] = TO_GENERATE
    return texts


def assert_same(one, other, *, atol):
    assert (one.tokens == other.tokens).all()
    assert (one.block == other.block).all()
    np.testing.assert_allclose(one.logprob, other.logprob, atol=atol)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_rescoring_agrees_and_a_batch_equals_its_items(groups, name, kind):
    """In ragged batches of prompts and of texts whose holes are of different sizes."""
    network = build(NETWORKS[kind], groups, dtype=torch.float64)
    prompts, strategy = random_prompts(1, 6, 3), STRATEGIES[name]
    arguments = {"strategy": strategy, "sampling": DRAWN}
    together = generate(network, prompts, num_tokens=NUM_TOKENS, **arguments)
    assert_rescores(network, together, atol=1e-10)
    for number, prompt in enumerate(prompts):
        alone = generate(
            network, [prompt], num_tokens=NUM_TOKENS, sample_numbers=[number], **arguments
        )
        assert_same(alone.samples[0], together.samples[number], atol=1e-10)
        assert (together.samples[number].generated == (alone.samples[0].round > 0)).all()
        assert alone.rounds == alone.samples[0].round.max()
    if strategy.streams > 2:
        return
    texts = random_texts()
    together = infill(network, texts, **arguments)
    assert_rescores(network, together, atol=1e-10)
    for number, text in enumerate(texts):
        sample = together.samples[number]
        assert (sample.tokens[text != TO_GENERATE] == text[text != TO_GENERATE]).all()
        alone = infill(network, [text], sample_numbers=[number], **arguments)
        assert_same(alone.samples[0], sample, atol=1e-10)


@torch.no_grad()
def without_cache(network, prompt, strategy, block):
    """Greedy decoding that reads the whole text anew for every block, from its definition."""
    tokens = np.concatenate((prompt, np.zeros(NUM_TOKENS, dtype=np.int64)))
    left = np.arange(len(prompt), len(tokens))
    number = len(prompt)
    block = block.copy()
    while len(left):
        if strategy.dynamic is not None:
            block[left] = number
        rows = logits_by_index(network, batch_of(tokens[None], block[None]))[0]
        now = left[block[left] == number]
        probability = rows[now].softmax(dim=-1)
        if strategy.dynamic is not None:
            top = probability.topk(2).values
            score = {
                "confidence": top[:, 0],
                "entropy": (probability * probability.log()).sum(dim=-1),
                "margin": top[:, 0] - top[:, 1],
            }[strategy.dynamic.rule]
            best = score.argsort(descending=True)[: strategy.dynamic.size]
            now = np.sort(now[best.numpy()])
        tokens[now] = rows[now].argmax(dim=-1)
        left = np.setdiff1d(left, now)
        block[left] = np.maximum(block[left], number + 1)
        number += 1
    return tokens, block


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "random"])
def test_cached_equals_uncached(groups, name, kind):
    network, strategy = build(NETWORKS[kind], groups), STRATEGIES[name]
    prompts = random_prompts(4, 1, 7, seed=5)
    made = generate(network, prompts, num_tokens=NUM_TOKENS, strategy=strategy, sampling=GREEDY)
    assert_rescores(network, made, atol=1e-4)
    for prompt, sample in zip(prompts, made.samples, strict=True):
        tokens, block = without_cache(network, prompt, strategy, sample.block)
        assert (sample.tokens == tokens).all()
        assert (sample.block == block).all()


def decode_all(groups):
    """What each strategy makes of ragged prompts on this layout."""
    # In double precision, since single rounds otherwise on each layout and chance is drawn finely.
    parallel = ParallelConfig(tensor=groups.tp.size())
    network = fresh(LLAMA, groups, parallel=parallel, dtype=torch.float64)
    made = [
        generate(network, random_prompts(2, 5), num_tokens=9, strategy=strategy, sampling=DRAWN)
        for strategy in STRATEGIES.values()
    ]
    return [[(s.tokens, s.block, s.logprob) for s in generation.samples] for generation in made]


def test_tensor_parallel_ranks_make_the_same_texts(groups):
    expected = decode_all(groups)
    for got in run_on_ranks(decode_all, 2, parallel=ParallelConfig(tensor=2)):
        for mine, theirs in zip(itertools.chain(*got), itertools.chain(*expected), strict=True):
            assert (mine[0] == theirs[0]).all()
            assert (mine[1] == theirs[1]).all()
            np.testing.assert_allclose(mine[2], theirs[2], atol=1e-10)


@pytest.mark.parametrize("name", STRATEGIES)
def test_texts_end_where_they_would_have(groups, name):
    """Rounds stop once every text is known up to its end, and change nothing before it."""
    network = build(LLAMA, groups, dtype=torch.float64)
    prompts = random_prompts(5, 2, 3)
    arguments = {"num_tokens": 24, "strategy": STRATEGIES[name], "sampling": Sampling(seed=6)}
    whole = generate(network, prompts, **arguments)
    # An end that all texts reach sooner or later, or else the one of the first text.
    common = set.intersection(*(set(s.tokens[s.generated].tolist()) for s in whole.samples))
    end = min(common) if common else int(whole.samples[0].tokens[8])
    stopped = generate(network, prompts, eos_id=end, **arguments)
    assert stopped.rounds <= whole.rounds
    for cut, sample in zip(stopped.samples, whole.samples, strict=True):
        assert (cut.tokens == sample.until(end).tokens).all()
        assert (cut.round == sample.until(end).round).all()


def test_one_by_one_decoding_stops_at_the_last_end(groups):
    network = build(dataclasses.replace(LLAMA, vocab_size=4), groups)
    prompts = [np.array([1]), np.array([2, 3, 1])]
    whole = generate(network, prompts, num_tokens=40)
    ends = [int(np.flatnonzero(s.tokens[s.generated] == 0)[0]) for s in whole.samples]
    landed = []
    stopped = generate(network, prompts, num_tokens=40, eos_id=0, on_round=landed.append)
    assert stopped.rounds == max(ends) + 1 < 40
    assert [len(s.tokens) for s in stopped.samples] == [1 + ends[0], 3 + ends[1]]
    assert [int((one.positions > 0).sum()) for one in landed] == [
        sum(n <= end for end in ends) for n in range(max(ends) + 1)
    ]


def test_rounds_tell_where_tokens_land(groups):
    network = build(LLAMA, groups)
    for strategy in STRATEGIES.values():
        landed = []
        made = generate(
            network, random_prompts(4, 2), num_tokens=NUM_TOKENS, strategy=strategy,
            on_round=landed.append,
        )  # fmt: skip
        for item, sample in enumerate(made.samples):
            text = np.full(len(sample.tokens), TO_GENERATE)
            for one in landed:
                places = one.positions[item][one.positions[item] > 0]
                assert (text[places] == TO_GENERATE).all()
                assert (sample.round[places] == one.round).all()
                text[places] = one.tokens[item][one.positions[item] > 0]
            assert (text == np.where(sample.generated, sample.tokens, TO_GENERATE)).all()
