"""LAMBADA figures against plain forward passes, and files that are refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

from armd_scale.data.text_encoder import TokenPair
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.base import TaskOptions, run_task
from armd_scale.eval.tasks.lambada import LambadaResult, LambadaTask
from armd_scale.generation import Sampling, generate_tokens
from armd_scale.order.spec import parse_spec
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position

OPTIONS = TaskOptions(order=parse_spec("l2r"), sampling=Sampling(), max_tokens=60)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(["the quick brown fox jumps\n" * 20], 280).save(folder)
    return load_tokenizer(folder)


def compute_nats(network, passage):
    text = np.concatenate((passage.context, passage.continuation))
    (logprob,) = log_probs_by_position(network, batch_of(text[None], np.arange(len(text))[None]))
    return -sum(logprob[p].item() for p in range(len(passage.context), len(text)))


def with_greedy_continuation(network, passage):
    sampling = Sampling(temperature=0.0)
    (sample,) = generate_tokens(network, [passage.context], num_tokens=2, sampling=sampling).samples
    return TokenPair(passage.context, sample.tokens[len(passage.context) :])


def test_accuracy_and_perplexity(groups, tokenizer, tmp_path):
    """Of three passages, the second one's last word is made to be the greedy continuation."""
    network = build(dataclasses.replace(LLAMA, vocab_size=280), groups)
    path = tmp_path / "passages.jsonl"
    texts = ["the quick brown fox", "a fox jumps", " the brown quick \n"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    passages = list(LambadaTask.read(path, tokenizer, OPTIONS).passages)
    words = [tokenizer.decode(p.continuation.tolist()).strip() for p in passages]
    assert words == ["fox", "jumps", "quick"]
    passages[1] = with_greedy_continuation(network, passages[1])
    result = run_task(LambadaTask(passages, 60), network, micro_batch=2, groups=groups)
    assert isinstance(result, LambadaResult)
    assert (result.num_passages, result.accuracy) == (3, pytest.approx(1 / 3))
    assert result.accuracy_standard_error == pytest.approx(math.sqrt(2 / 9 / 2))
    nats = [compute_nats(network, passage) for passage in passages]
    assert result.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert math.isfinite(result.perplexity)


def test_the_number_of_passages_can_be_limited(tokenizer, tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text('{"text": "a b"}\n' * 3)
    assert len(LambadaTask.read(path, tokenizer, OPTIONS)) == 3
    assert len(LambadaTask.read(path, tokenizer, dataclasses.replace(OPTIONS, max_examples=2))) == 2


@pytest.mark.parametrize("line", ["{", '{"txt": "a b"}', '{"text": "word"}', '["a b"]'])
def test_a_line_that_is_not_a_passage_is_refused(tokenizer, tmp_path, line):
    path = tmp_path / "passages.jsonl"
    path.write_text(f'{{"text": "a b"}}\n{line}\n')
    with pytest.raises(
        ArmdError, match=r"line 2 must be an object with a .text. of at least two words"
    ):
        LambadaTask.read(path, tokenizer, OPTIONS)


def test_the_result_line():
    result = LambadaResult(
        task="lambada",
        accuracy=0.5,
        accuracy_standard_error=0.25,
        perplexity=12.3456,
        num_passages=3,
    )
    expected = "lambada  accuracy 0.5000 (standard error 0.2500)  perplexity 12.35  3 passages"
    assert result.format_line() == expected
    single = dataclasses.replace(result, accuracy_standard_error=None, num_passages=1)
    assert single.format_line() == "lambada  accuracy 0.5000  perplexity 12.35  1 passages"
