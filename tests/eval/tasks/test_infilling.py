"""Infilling: generated middles equal those of `infill_tokens`, and ROUGE equals Google's."""

import dataclasses
import json
import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.base import TaskOptions, run_task
from armd_scale.eval.tasks.infilling import InfillExample, InfillResult, InfillTask
from armd_scale.eval.text_metrics import words
from armd_scale.generation import TO_GENERATE, Sampling, Strategy, infill_tokens
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from tests.support.networks import LLAMA, build
from tests.support.spawn import run_on_ranks

SAMPLING = Sampling(seed=5)
OPTIONS = TaskOptions(order=parse_spec("l2r"), sampling=SAMPLING, max_tokens=64)
PASSAGES = [
    {"before": "the quick", "middle": " brown fox jumps", "after": " over the dog\n"},
    {"before": "", "middle": "a lazy dog", "after": ""},
    {"before": "jumps over the lazy", "middle": " dog, the fox", "after": " and the quick"},
    {"before": "the", "middle": " quick brown quick brown", "after": " fox"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tokenizer and `passages.jsonl`."""
    folder = tmp_path_factory.mktemp("folder")
    train_sentencepiece(["the quick brown fox jumps\n" * 20], 280).save(folder)
    lines = "".join(json.dumps(passage) + "\n" for passage in PASSAGES)
    (folder / "passages.jsonl").write_text(lines)
    return folder


def build_network(groups):
    return build(dataclasses.replace(LLAMA, vocab_size=280), groups)


def run(groups, network, examples, tokenizer, spec):
    task = InfillTask(examples, tokenizer, parse_spec(spec), SAMPLING)
    result = run_task(task, network, micro_batch=2, groups=groups)
    assert isinstance(result, InfillResult)
    return result


def infill_middles(network, tokenizer, examples, **strategy):
    output = infill_tokens(
        network,
        [example.text for example in examples],
        strategy=Strategy(**strategy),
        sampling=SAMPLING,
        sample_ids=range(len(examples)),
    )
    return [tokenizer.decode(sample.tokens[sample.generated].tolist()) for sample in output.samples]


def test_a_hole_has_as_many_tokens_as_the_middle(folder):
    tokenizer = load_tokenizer(folder)
    task = InfillTask.read(folder / "passages.jsonl", tokenizer, OPTIONS)
    for example, passage in zip(task.examples, PASSAGES, strict=True):
        before, middle, after = tokenizer.encode_batch(list(passage.values()))
        expected = [tokenizer.bos, *before, *[TO_GENERATE] * len(middle), *after]
        assert example.text.tolist() == expected
        assert example.middle == passage["middle"]


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [("l2r", {}), ("groups:3", {"group": 3}), ("strided:2", {"streams": 2})],
)
def test_figures_are_rouge_of_the_infilled_middles(groups, folder, spec, strategy):
    network, tokenizer = build_network(groups), load_tokenizer(folder)
    examples = [
        InfillExample(np.array([tokenizer.bos, 70, *[TO_GENERATE] * size, 80, 81]), "")
        for size in (19, 12, 16)
    ]
    middles = infill_middles(network, tokenizer, examples, **strategy)
    # References that share some words with the generated middles, in another order.
    examples = [
        dataclasses.replace(example, middle=" ".join([*reversed(words(text)[:3]), "zebra"]))
        for example, text in zip(examples, middles, strict=True)
    ]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    expected = [
        scorer.score(example.middle, text.lower())
        for example, text in zip(examples, middles, strict=True)
    ]
    result = run(groups, network, examples, tokenizer, spec)
    for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        scores = [score[key].fmeasure for score in expected]
        assert getattr(result, name) == pytest.approx(np.mean(scores))
        error = np.std(scores, ddof=1) / math.sqrt(3)
        assert getattr(result, f"{name}_standard_error") == pytest.approx(error)
    assert 0 < result.rouge_l <= result.rouge_1 < 1
    assert (result.order, result.num_passages, result.num_tokens) == (spec, 3, 47)


def test_each_middle_draws_its_own_order(folder):
    text = np.array([2, 7, *[TO_GENERATE] * 9, 8])
    order = parse_spec("random")
    examples = [InfillExample(text, "")] * 2
    task = InfillTask(examples, load_tokenizer(folder), order, Sampling(seed=3))
    for index in (0, 1):
        spec = task.generation_spec(index)
        block = sample_blocks(order, seed=3, sample_index=index, lengths=(10,))[1:]
        assert spec.block.tolist() == [0, 0, *block, 0]
        assert spec.known.tolist() == [True, True, *[False] * 9, True]


def run_on_rank(groups, folder, spec):
    network, tokenizer = build_network(groups), load_tokenizer(folder)
    examples = InfillTask.read(folder / "passages.jsonl", tokenizer, OPTIONS).examples[:3]
    middle = "a b c d e f g h i j k"
    examples = [dataclasses.replace(example, middle=middle) for example in examples]
    return dataclasses.asdict(run(groups, network, examples, tokenizer, spec))


@pytest.mark.slow
def test_the_figures_do_not_depend_on_the_number_of_ranks(groups, folder):
    expected = run_on_rank(groups, folder, "random")
    assert expected["rouge_1"] > 0
    assert run_on_ranks(run_on_rank, 2, folder, "random") == [expected, expected]
    assert run_on_rank(groups, folder, "l2r")["rouge_1"] != expected["rouge_1"]


def test_a_single_passage_has_no_standard_error(groups, folder):
    network, tokenizer = build_network(groups), load_tokenizer(folder)
    examples = InfillTask.read(folder / "passages.jsonl", tokenizer, OPTIONS).examples[:1]
    assert run(groups, network, examples, tokenizer, "l2r").rouge_1_standard_error is None


@pytest.mark.parametrize(
    "line",
    ["{", '{"before": "a", "middle": "b"}', '{"before": "", "middle": "?", "after": ""}', "[3]"],
)
def test_a_line_that_is_not_a_passage_is_refused(folder, tmp_path, line):
    path = tmp_path / "passages.jsonl"
    path.write_text(f"{json.dumps(PASSAGES[0])}\n{line}\n")
    with pytest.raises(ArmdError, match=r'line 2 must be an object with the strings "before"'):
        InfillTask.read(path, load_tokenizer(folder), OPTIONS)


def test_a_passage_that_is_too_long_is_refused(folder):
    options = dataclasses.replace(OPTIONS, max_tokens=9)
    with pytest.raises(ArmdError, match=r"line 1 must have at most 9 tokens \(got \d+\): shorten"):
        InfillTask.read(folder / "passages.jsonl", load_tokenizer(folder), options)
