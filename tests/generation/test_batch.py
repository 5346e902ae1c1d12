"""Generation for token sequences: every strategy, on ragged batches of prompts and of holes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import GenerationError
from armd_scale.generation import (
    TO_GENERATE,
    ConfidenceSchedule,
    Sampling,
    Strategy,
    generate_tokens,
    infill_tokens,
)
from armd_scale.generation.batch import continuation_specs, generate_from_specs
from armd_scale.generation.output_rules import OutputRules
from tests.model.test_weight_init import build_initialized
from tests.support.networks import GPT2, LLAMA, batch_of, build
from tests.support.rescoring import assert_rescores, random_prompts
from tests.support.spawn import run_on_ranks
from tests.support.windows import VOCAB, logits_by_index

NUM_TOKENS = 11
GREEDY = Sampling(temperature=0)
RANDOM = Sampling(seed=3, temperature=0.8, top_p=0.9, repetition_penalty=1.3)
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
    "speculative": Strategy(speculative=4),
    "speculative streams": Strategy(speculative=3, streams=3),
    "speculative random order": Strategy(speculative=5, random_order=True),
}
NETWORKS = {
    "anchor": LLAMA,
    "anchor self": dataclasses.replace(LLAMA, upper_visibility="self"),
    "both": dataclasses.replace(LLAMA, query="anchor+prefix"),
    "learned": dataclasses.replace(LLAMA, query="learned", two_stream_layers=4),
}


KINDS = [
    # The other two share all their code with these, and double the time.
    pytest.param(kind, marks=() if kind in ("anchor", "both") else pytest.mark.slow(minutes=0.5))
    for kind in NETWORKS
]


def random_texts_with_holes():
    """Texts with 3 holes of 3, 1 and 5 tokens; 1 hole of 2; and 1 hole at the end."""
    texts = random_prompts(20, 9, 14, seed=2)
    for text, holes in zip(
        texts, [[3, 4, 5, 9, 12, 13, 14, 15, 16], [4, 5], [12, 13]], strict=True
    ):
        text[holes] = TO_GENERATE
    return texts


def assert_same(first, second, *, atol):
    assert (first.tokens == second.tokens).all()
    assert (first.block == second.block).all()
    np.testing.assert_allclose(first.logprob, second.logprob, atol=atol)


def shortest_prompt(kind, strategy):
    """Length of the shortest prompt whose scores are not all equal.

    With a learned query and a single visible token, all positions have the same logits: attention
    over one key does not depend on the rotary position. Which of them dynamic decoding commits
    first is then decided by rounding, which differs from batch to batch.
    """
    return 2 if kind == "learned" and strategy.dynamic is not None else 1


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_rescoring_agrees_and_a_batch_equals_its_items(groups, name, kind):
    """In ragged batches of prompts, and of texts whose holes have different sizes."""
    network = build(NETWORKS[kind], groups, dtype=torch.float64)
    strategy = STRATEGIES[name]
    prompts = random_prompts(shortest_prompt(kind, strategy), 6, 3)
    arguments = {"strategy": strategy, "sampling": RANDOM}
    together = generate_tokens(network, prompts, num_tokens=NUM_TOKENS, **arguments)
    assert_rescores(network, together, atol=1e-10)
    for index, prompt in enumerate(prompts):
        alone = generate_tokens(
            network, [prompt], num_tokens=NUM_TOKENS, sample_ids=[index], **arguments
        )
        assert_same(alone.samples[0], together.samples[index], atol=1e-10)
        assert (together.samples[index].generated == (alone.samples[0].round > 0)).all()
        assert alone.rounds == alone.samples[0].round.max()
    if strategy.streams > 2:
        return  # the second text has a hole of 2 tokens
    texts = random_texts_with_holes()
    together = infill_tokens(network, texts, **arguments)
    assert_rescores(network, together, atol=1e-10)
    for index, text in enumerate(texts):
        sample = together.samples[index]
        assert (sample.tokens[text != TO_GENERATE] == text[text != TO_GENERATE]).all()
        alone = infill_tokens(network, [text], sample_ids=[index], **arguments)
        assert_same(alone.samples[0], sample, atol=1e-10)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("query", ["anchor", "anchor+prefix", "learned"])
@pytest.mark.parametrize("sampling", [Sampling(seed=5, top_p=0.9), GREEDY])
def test_streams_of_a_batch_equal_its_items(groups, query, streams, sampling):
    network = build(dataclasses.replace(LLAMA, query=query), groups, dtype=torch.float64)
    prompts = random_prompts(1, 6, 3, 6)
    arguments = {"num_tokens": 18, "strategy": Strategy(streams=streams), "sampling": sampling}
    together = generate_tokens(network, prompts, **arguments)
    assert_rescores(network, together, atol=1e-10)
    for index, prompt in enumerate(prompts):
        alone = generate_tokens(network, [prompt], sample_ids=[index], **arguments)
        assert_same(alone.samples[0], together.samples[index], atol=1e-10)


@torch.no_grad()
def decode_without_cache(network, prompt, strategy, block):
    """Decode greedily by recomputing the whole text for every block, from the definition."""
    tokens = np.concatenate((prompt, np.zeros(NUM_TOKENS, dtype=np.int64)))
    remaining = np.arange(len(prompt), len(tokens))
    block_index = len(prompt)
    block = block.copy()
    while len(remaining):
        if strategy.dynamic is not None:
            block[remaining] = block_index
        rows = logits_by_index(network, batch_of(tokens[None], block[None]))[0]
        current = remaining[block[remaining] == block_index]
        probability = rows[current].softmax(dim=-1)
        if strategy.dynamic is not None:
            top = probability.topk(2).values
            score = {
                "confidence": top[:, 0],
                "entropy": (probability * probability.log()).sum(dim=-1),
                "margin": top[:, 0] - top[:, 1],
            }[strategy.dynamic.rule]
            best = score.argsort(descending=True)[: strategy.dynamic.tokens_per_round]
            current = np.sort(current[best.numpy()])
        tokens[current] = rows[current].argmax(dim=-1)
        remaining = np.setdiff1d(remaining, current)
        block[remaining] = np.maximum(block[remaining], block_index + 1)
        block_index += 1
    return tokens, block


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "random"])
def test_cached_equals_uncached(groups, name, kind):
    network, strategy = build(NETWORKS[kind], groups), STRATEGIES[name]
    prompts = random_prompts(4, shortest_prompt(kind, strategy), 7, seed=5)
    output = generate_tokens(
        network, prompts, num_tokens=NUM_TOKENS, strategy=strategy, sampling=GREEDY
    )
    assert_rescores(network, output, atol=1e-4)
    for prompt, sample in zip(prompts, output.samples, strict=True):
        tokens, block = decode_without_cache(network, prompt, strategy, sample.block)
        assert (sample.tokens == tokens).all()
        assert (sample.block == block).all()


def decode_all(groups):
    """Decode ragged prompts with every strategy, on the layout of `groups`."""
    # In float64: in float32 each layout rounds differently, and a random number close to a boundary
    # between two tokens would pick the other one.
    parallel = ParallelConfig(tensor=groups.tp.size())
    network = build_initialized(LLAMA, groups, parallel=parallel, dtype=torch.float64)
    outputs = [
        generate_tokens(
            network, random_prompts(2, 5), num_tokens=9, strategy=strategy, sampling=RANDOM
        )
        for strategy in STRATEGIES.values()
    ]
    return [[(s.tokens, s.block, s.logprob) for s in output.samples] for output in outputs]


@pytest.mark.slow
def test_tensor_parallel_ranks_generate_the_same_texts(groups):
    expected = list(itertools.chain(*decode_all(groups)))
    for results in run_on_ranks(decode_all, 2, parallel=ParallelConfig(tensor=2)):
        for result, (tokens, block, logprob) in zip(
            itertools.chain(*results), expected, strict=True
        ):
            assert (result[0] == tokens).all()
            assert (result[1] == block).all()
            np.testing.assert_allclose(result[2], logprob, atol=1e-10)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("name", STRATEGIES)
def test_eos_id_stops_early_and_changes_nothing_before_it(groups, name):
    network = build(LLAMA, groups, dtype=torch.float64)
    prompts = random_prompts(5, 2, 3)
    arguments = {"num_tokens": 24, "strategy": STRATEGIES[name], "sampling": Sampling(seed=6)}
    full = generate_tokens(network, prompts, **arguments)
    # A token that all texts generate at some point, or else one of the first text.
    common = set.intersection(*(set(s.tokens[s.generated].tolist()) for s in full.samples))
    eos_id = min(common) if common else int(full.samples[0].tokens[8])
    stopped = generate_tokens(network, prompts, rules=OutputRules(eos_ids=(eos_id,)), **arguments)
    assert stopped.rounds <= full.rounds
    for cut, sample in zip(stopped.samples, full.samples, strict=True):
        (matches,) = np.nonzero(sample.generated & (sample.tokens == eos_id))
        expected = sample.truncate(matches[0] if len(matches) else len(sample.tokens))
        assert np.array_equal(cut.tokens, expected.tokens)
        assert np.array_equal(cut.round, expected.round)


def test_one_by_one_decoding_stops_at_the_last_end(groups):
    network = build(dataclasses.replace(LLAMA, vocab_size=4), groups)
    prompts = [np.array([1]), np.array([2, 3, 1])]
    full = generate_tokens(network, prompts, num_tokens=40)
    ends = [int(np.flatnonzero(s.tokens[s.generated] == 0)[0]) for s in full.samples]
    rounds = []
    stopped = generate_tokens(
        network, prompts, num_tokens=40, rules=OutputRules(eos_ids=(0,)), on_round=rounds.append
    )
    assert stopped.rounds == max(ends) + 1 < 40
    assert [len(s.tokens) for s in stopped.samples] == [1 + ends[0], 3 + ends[1]]
    assert [int((result.positions > 0).sum()) for result in rounds] == [
        sum(n <= end for end in ends) for n in range(max(ends) + 1)
    ]


def test_on_round_reports_every_token_once(groups):
    network = build(LLAMA, groups)
    for strategy in STRATEGIES.values():
        rounds = []
        output = generate_tokens(
            network, random_prompts(4, 2), num_tokens=NUM_TOKENS, strategy=strategy,
            on_round=rounds.append,
        )  # fmt: skip
        for index, sample in enumerate(output.samples):
            text = np.full(len(sample.tokens), TO_GENERATE)
            for result in rounds:
                is_real = result.positions[index] > 0
                positions = result.positions[index][is_real]
                assert (text[positions] == TO_GENERATE).all()
                assert (sample.round[positions] == result.round).all()
                text[positions] = result.tokens[index][is_real]
            assert (text == np.where(sample.generated, sample.tokens, TO_GENERATE)).all()


def test_on_round_is_called_after_every_round(groups):
    counts = []
    generate_tokens(
        build(LLAMA, groups),
        random_prompts(1),
        num_tokens=9,
        strategy=Strategy(streams=4),
        on_round=lambda result: counts.append(result.max_committed),
    )
    assert counts == [1, 1, 1, 3, 3]


def test_decoding_leaves_cudnn_attention_out(groups):
    enabled = []
    generate_tokens(
        build(LLAMA, groups),
        random_prompts(1),
        num_tokens=3,
        on_round=lambda result: enabled.append(torch.backends.cuda.cudnn_sdp_enabled()),
    )
    assert enabled == [False] * 3
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_seed_and_sample_id_decide_the_text(groups):
    network = build(LLAMA, groups)
    (prompt,) = random_prompts(3)
    texts = [
        tuple(sample.tokens)
        for seed in (0, 1)
        for sample in generate_tokens(
            network,
            [prompt] * 3,
            num_tokens=12,
            strategy=Strategy(streams=2),
            sampling=Sampling(seed=seed),
        ).samples
    ]
    assert len(set(texts)) == 6
    again = generate_tokens(
        network, [prompt], num_tokens=12, strategy=Strategy(streams=2), sample_ids=[2]
    )
    assert tuple(again.samples[0].tokens) == texts[2]


@pytest.mark.parametrize("model", [GPT2, dataclasses.replace(LLAMA, query="prefix")])
def test_texts_longer_than_the_position_tables_are_refused(groups, model):
    network = build(model, groups, max_positions=16)
    (prompt,) = random_prompts(6)
    output = generate_tokens(network, [prompt], num_tokens=10, strategy=Strategy(streams=2))
    assert_rescores(network, output)
    with pytest.raises(GenerationError, match=r"at most 16 tokens.*got 17, .* at least 1 fewer"):
        generate_tokens(network, [prompt], num_tokens=11)


def test_rotary_positions_have_no_limit(groups):
    network = build(LLAMA, groups, max_positions=16)
    output = generate_tokens(network, random_prompts(1), num_tokens=30)
    assert len(output.samples[0].tokens) == 31


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least 1 sample must be generated .got 0"),
        ([np.array([3, VOCAB])], "between 0 and 100, the model's vocabulary .got 101"),
        ([np.array([-1, 4])], "between 0 and 100, the model's vocabulary .got -1"),
    ],
)
def test_invalid_prompts_are_refused(groups, prompts, message):
    with pytest.raises(GenerationError, match=message):
        generate_tokens(build(LLAMA, groups), prompts, num_tokens=3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_predictions_raise(groups, temperature):
    network = build(LLAMA, groups)
    with torch.no_grad():
        network.final_norm.weight[0] = torch.nan
    with pytest.raises(GenerationError, match="predictions must be finite"):
        generate_tokens(
            network, random_prompts(1), num_tokens=3, sampling=Sampling(temperature=temperature)
        )


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_interrupted_generation_keeps_what_is_known(groups, name):
    network = build(LLAMA, groups)
    arguments = {"strategy": STRATEGIES[name], "sampling": Sampling(seed=6)}
    prompts = random_prompts(5, 2)
    specs = continuation_specs(prompts, range(2), num_tokens=24, **arguments)
    full = generate_from_specs(network, specs, **arguments)

    def interrupt(result):
        if result.round == 4:
            raise KeyboardInterrupt

    output = generate_from_specs(
        network, specs, on_round=interrupt, keep_on_interrupt=True, **arguments
    )
    assert output.is_interrupted
    assert output.rounds == 4 < full.rounds
    for sample, whole, prompt in zip(output.samples, full.samples, prompts, strict=True):
        assert len(prompt) <= len(sample.tokens) < len(whole.tokens)
        assert np.array_equal(sample.tokens, whole.tokens[: len(sample.tokens)])
        assert len(sample.tokens) == len(whole.tokens) or whole.round[len(sample.tokens)] > 4
    with pytest.raises(KeyboardInterrupt):
        generate_from_specs(network, specs, on_round=interrupt, **arguments)


def test_a_text_is_not_longer_than_the_positions_of_a_converted_model(groups):
    """Rotary embeddings would go on, but the source does not compute the same there."""
    network = build(dataclasses.replace(LLAMA, max_positions=12), groups)
    assert len(generate_tokens(network, [np.array([1])], num_tokens=11).samples[0].tokens) == 12
    with pytest.raises(GenerationError, match=r"at most 12 tokens.*\(got 13, prompt included\)"):
        generate_tokens(network, [np.array([1])], num_tokens=12)
