"""Filled middles against the sampler's own infilling, and ROUGE by Google's library."""

import dataclasses
import json
import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from armd_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.infilling import InfillExample, example_spec, read_examples, run_infill
from armd_scale.eval.text_metrics import words
from armd_scale.generation import TO_GENERATE, Sampling, Strategy, infill_tokens
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from tests.support.networks import LLAMA, build
from tests.support.spawn import run_on_ranks

SAMPLING = Sampling(seed=5)
PASSAGES = [
    {"before": "the quick", "middle": " brown fox jumps", "after": " over the dog\n"},
    {"before": "", "middle": "a lazy dog", "after": ""},
    {"before": "jumps over the lazy", "middle": " dog, the fox", "after": " and the quick"},
    {"before": "the", "middle": " quick brown quick brown", "after": " fox"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    train_sentencepiece(["the quick brown fox jumps\n" * 20], 280).save(place)
    (place / "passages.jsonl").write_text("".join(json.dumps(one) + "\n" for one in PASSAGES))
    return place


def model(groups, place):
    network = build(dataclasses.replace(LLAMA, vocab_size=280), groups)
    return network, load_tokenizer(place)


def filled_by_sampler(network, tokenizer, gaps, **strategy):
    made = infill_tokens(
        network,
        [gap.text for gap in gaps],
        strategy=Strategy(**strategy),
        sampling=SAMPLING,
        sample_ids=range(len(gaps)),
    )
    return [tokenizer.decode(sample.tokens[sample.generated].tolist()) for sample in made.samples]


def test_a_hole_has_as_many_tokens_as_the_middle(place):
    tokenizer = load_tokenizer(place)
    gaps = read_examples(place / "passages.jsonl", tokenizer, max_tokens=64)
    for gap, passage in zip(gaps, PASSAGES, strict=True):
        before, middle, after = tokenizer.encode_batch(list(passage.values()))
        expected = [tokenizer.eod, *before, *[TO_GENERATE] * len(middle), *after]
        assert gap.text.tolist() == expected
        assert gap.middle == passage["middle"]


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [("l2r", {}), ("groups:3", {"group": 3}), ("strided:2", {"streams": 2})],
)
def test_rouge_of_what_the_sampler_fills_in(groups, place, spec, strategy):
    network, tokenizer = model(groups, place)
    gaps = [
        InfillExample(np.array([tokenizer.eod, 70, *[TO_GENERATE] * size, 80, 81]), "")
        for size in (19, 12, 16)
    ]
    filled = filled_by_sampler(network, tokenizer, gaps, **strategy)
    # References that share some of the words, in another order.
    gaps = [
        dataclasses.replace(gap, middle=" ".join([*reversed(words(text)[:3]), "zebra"]))
        for gap, text in zip(gaps, filled, strict=True)
    ]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    theirs = [
        scorer.score(gap.middle, text.lower()) for gap, text in zip(gaps, filled, strict=True)
    ]
    found = run_infill(
        network, gaps, tokenizer, order=parse_spec(spec), sampling=SAMPLING, micro_batch=2,
        groups=groups,
    )  # fmt: skip
    for name, their in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        scores = [score[their].fmeasure for score in theirs]
        assert getattr(found, name) == pytest.approx(np.mean(scores))
        error = np.std(scores, ddof=1) / math.sqrt(3)
        assert getattr(found, f"{name}_standard_error") == pytest.approx(error)
    assert 0 < found.rouge_l <= found.rouge_1 < 1
    assert (found.order, found.num_passages, found.num_tokens) == (spec, 3, 47)


def test_each_middle_has_an_order_of_its_own():
    text = np.array([2, 7, *[TO_GENERATE] * 9, 8])
    order = parse_spec("random")
    for number in (0, 1):
        found = example_spec(text, order, seed=3, number=number)
        drawn = sample_blocks(order, seed=3, sample_index=number, lengths=(10,))[1:]
        assert found.block.tolist() == [0, 0, *drawn, 0]
        assert found.known.tolist() == [True, True, *[False] * 9, True]


def fill_on_rank(groups, place, spec):
    network, tokenizer = model(groups, place)
    gaps = read_examples(place / "passages.jsonl", tokenizer, max_tokens=64)
    gaps = [dataclasses.replace(gap, middle="a b c d e f g h i j k") for gap in gaps[:3]]
    found = run_infill(
        network, gaps, tokenizer, order=parse_spec(spec), sampling=SAMPLING, micro_batch=2,
        groups=groups,
    )  # fmt: skip
    return dataclasses.asdict(found)


def test_any_number_of_ranks_gives_the_same_figures(groups, place):
    alone = fill_on_rank(groups, place, "random")
    assert alone["rouge_1"] > 0
    assert run_on_ranks(fill_on_rank, 2, place, "random") == [alone, alone]
    assert fill_on_rank(groups, place, "l2r")["rouge_1"] != alone["rouge_1"]


def test_a_single_passage_has_no_standard_error(groups, place):
    network, tokenizer = model(groups, place)
    gaps = read_examples(place / "passages.jsonl", tokenizer, max_tokens=64)[:1]
    found = run_infill(
        network, gaps, tokenizer, order=parse_spec("l2r"), sampling=SAMPLING, micro_batch=2,
        groups=groups,
    )  # fmt: skip
    assert found.rouge_1_standard_error is None


@pytest.mark.parametrize(
    "line",
    ["{", '{"before": "a", "middle": "b"}', '{"before": "", "middle": "?", "after": ""}', "[3]"],
)
def test_a_line_that_is_no_passage(place, tmp_path, line):
    tokenizer = load_tokenizer(place)
    path = tmp_path / "passages.jsonl"
    path.write_text(f"{json.dumps(PASSAGES[0])}\n{line}\n")
    with pytest.raises(ArmdError, match=r'line 2 must be an object with the texts "before"'):
        read_examples(path, tokenizer, max_tokens=64)
    path.write_text("")
    with pytest.raises(ArmdError, match="is empty"):
        read_examples(path, tokenizer, max_tokens=64)
    path.write_text(json.dumps(PASSAGES[0]))
    with pytest.raises(ArmdError, match=r"line 1 must be a text of at most 9 tokens, got \d+: "):
        read_examples(path, tokenizer, max_tokens=9)
