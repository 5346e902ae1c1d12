"""tools/paper_tables.py on a tiny checkpoint, against the evaluations that its cells stand for."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU
from transformers import GPT2Config, GPT2LMHeadModel

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.eval.evaluate import EvalRequest, prepare, run_prepared
from armd_scale.generation import Sampling, Strategy, generate_tokens
from tests.support import cli as runs
from tests.support.held_out import write_place


@pytest.fixture(scope="module")
def place(groups, tmp_path_factory):
    folder = write_place(tmp_path_factory.mktemp("place"), groups, vocab_size=280)
    (folder / "ptb.txt").write_text("the quick <unk> 's fox\n" * 9)
    return folder


def run(place, *words):
    return runs.run("tools/paper_tables.py", *words, folder=place)


def test_zero_shot(groups, place):
    files = ("--markdown", place / "t.md", "--picture", place / "t.svg")
    done = run(
        place, "zero-shot", "--checkpoint", place / "run", "--text", f"PTB={place}/ptb.txt", *files
    )
    assert done.status == 0, done.errors
    request = EvalRequest(
        checkpoint=str(place / "run"), text=place / "ptb.txt", detokenise="ptb", order="l2r"
    )
    expected = run_prepared(prepare(request), groups, torch.device("cpu")).perplexity
    assert done.output.endswith(f"| run | - | - | {expected:.2f} | - | - |\n")
    assert (place / "t.md").read_text() == done.output
    assert "<svg" in (place / "t.svg").read_text()


def entropy_bits(text):
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


def distinct(texts, n):
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams)


def self_bleu(texts):
    """By sacrebleu, of tokens written as words."""
    bleu = BLEU(smooth_method="floor", smooth_value=0.1, tokenize="none", effective_order=False)
    written = [" ".join(map(str, text)) for text in texts]
    scores = [
        bleu.sentence_score(own, written[:i] + written[i + 1 :]).score / 100
        for i, own in enumerate(written)
    ]
    return sum(scores) / len(scores)


def test_generative(groups, place):
    """Every figure anew: texts by the sampler, the judge's loss by transformers, variety above."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=40, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(place / "tokenizer")
    sizes = ("--samples", "3", "--tokens", "12")
    done = run(
        place, "generative", "--checkpoint", place / "run", "--judge", place / "tokenizer", *sizes
    )
    assert done.status == 0, done.errors
    opened = open_checkpoint(place / "run")
    tokenizer = load_tokenizer(opened.tokenizer_folder)
    network = load_network(opened, groups=groups)
    for streams, line in zip((1, 2, 4), done.output.splitlines()[-3:], strict=True):
        made = generate_tokens(
            network,
            [np.array([tokenizer.eod])] * 3,
            num_tokens=12,
            strategy=Strategy(streams=streams),
            sampling=Sampling(seed=opened.recipe.run.seed),
        )
        texts = [sample.tokens[1:].tolist() for sample in made.samples]
        nats = tokens = 0
        for text in texts:
            (ids,) = tokenizer.encode_batch([tokenizer.decode(text)])
            judged = torch.tensor([[tokenizer.eod, *ids.tolist()]])
            nats += model(judged, labels=judged).loss.item() * len(ids)
            tokens += len(ids)
        expected = [
            math.exp(nats / tokens),
            sum(map(entropy_bits, texts)) / 3,
            *(distinct(texts, n) for n in (1, 2, 3)),
            self_bleu(texts),
        ]
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert name == f"run, S = {streams}"
        for cell, value in zip(cells, expected, strict=True):
            places = len(cell.partition(".")[2])
            assert places == (2 if float(cell) >= 1 else 3)
            assert float(cell) == pytest.approx(value, abs=0.501 * 10**-places)


def test_ablations_say_what_they_vary(place):
    words = ("--checkpoint", place / "run", "--data", place / "valid", "--samples", "2")
    done = run(place, "ablation-two-stream", *words)
    assert "| run: 2 of 4 layers two-stream | " in done.output, done.errors


def test_a_wrong_name_ends_in_one_sentence(place):
    done = run(place, "zero-shot", "--checkpoint", place / "run", "--text", "ptb=x")
    assert done.sentence.startswith("error: --text must be NAME=FILE")
