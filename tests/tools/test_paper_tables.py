"""tools/paper_tables.py on a tiny checkpoint, against evaluations of each cell."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from transformers import GPT2Config, GPT2LMHeadModel

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.eval.data import require_tokenizer
from armd_scale.eval.evaluate import prepare, run_prepared
from armd_scale.eval.likelihood import Likelihood
from armd_scale.eval.request import EvalRequest
from armd_scale.generation import Sampling, Strategy, generate_tokens
from tests.support import cli
from tests.support.eval_data import write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(groups, tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("folder"), groups, vocab_size=280)
    (folder / "ptb.txt").write_text("the quick <unk> 's fox\n" * 9)
    return folder


def run(folder, *options):
    return cli.run("tools/paper_tables.py", *options, folder=folder)


def test_zero_shot(groups, folder):
    files = ("--markdown", folder / "t.md", "--plot", folder / "t.svg")
    process = run(
        folder,
        "zero-shot",
        "--checkpoint",
        folder / "run",
        "--text",
        f"PTB={folder}/ptb.txt",
        *files,
    )
    assert process.status == 0, process.errors
    request = EvalRequest(
        checkpoint=str(folder / "run"), text=folder / "ptb.txt", detokenizer="ptb", order="l2r"
    )
    expected = run_prepared(prepare(request), groups, torch.device("cpu"))
    assert isinstance(expected, Likelihood)
    assert process.output.endswith(f"| run | - | - | {expected.perplexity:.2f} | - | - |\n")
    assert (folder / "t.md").read_text() == process.output
    assert "<svg" in (folder / "t.svg").read_text()


def entropy_bits(text):
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


def distinct(texts, n):
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams)


def self_bleu(texts):
    """Self-BLEU of sacrebleu, with tokens written as words."""
    bleu = BLEU(smooth_method="floor", smooth_value=0.1, tokenize="none", effective_order=False)
    written = [" ".join(map(str, text)) for text in texts]
    scores = [
        bleu.sentence_score(own, written[:i] + written[i + 1 :]).score / 100
        for i, own in enumerate(written)
    ]
    return sum(scores) / len(scores)


def write_reference_lm(folder):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=40, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_generative(groups, folder):
    """Recompute every figure: texts by `generate_tokens`, loss by transformers, metrics above."""
    model = write_reference_lm(folder / "tokenizer")
    sizes = ("--samples", "3", "--tokens", "12")
    process = run(
        folder,
        "generative",
        "--checkpoint",
        folder / "run",
        "--eval-model",
        folder / "tokenizer",
        *sizes,
    )
    assert process.status == 0, process.errors
    checkpoint = open_checkpoint(folder / "run")
    tokenizer = require_tokenizer(checkpoint)
    network = load_network(checkpoint, groups=groups)
    for streams, line in zip((1, 2, 4), process.output.splitlines()[-3:], strict=True):
        output = generate_tokens(
            network,
            [np.array([tokenizer.bos])] * 3,
            num_tokens=12,
            strategy=Strategy(streams=streams),
            sampling=Sampling(seed=checkpoint.recipe.run.seed),
        )
        texts = [sample.tokens[1:].tolist() for sample in output.samples]
        nats = num_tokens = 0
        for text in texts:
            (ids,) = tokenizer.encode_batch([tokenizer.decode(text)])
            tokens = torch.tensor([[tokenizer.bos, *ids.tolist()]])
            nats += model(tokens, labels=tokens).loss.item() * len(ids)
            num_tokens += len(ids)
        expected = [
            math.exp(nats / num_tokens),
            sum(map(entropy_bits, texts)) / 3,
            *(distinct(texts, n) for n in (1, 2, 3)),
            self_bleu(texts),
        ]
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert name == f"run, S = {streams}"
        for cell, value in zip(cells, expected, strict=True):
            decimals = len(cell.partition(".")[2])
            assert decimals == (2 if float(cell) >= 1 else 3)
            assert float(cell) == pytest.approx(value, abs=0.501 * 10**-decimals)


def test_rows_of_an_ablation_are_labeled_with_the_setting(folder):
    options = ("--checkpoint", folder / "run", "--data", folder / "valid", "--samples", "2")
    process = run(folder, "ablation-two-stream", *options)
    assert "| run: 2 of 4 layers two-stream | " in process.output, process.errors


def test_an_unknown_benchmark_is_one_error_sentence(folder):
    process = run(folder, "zero-shot", "--checkpoint", folder / "run", "--text", "ptb=x")
    assert process.sentence.startswith("error: --text must be NAME=FILE")


def test_texts_of_a_file_are_a_row(folder):
    """Perplexity and diversity of texts that are already generated, without a checkpoint."""
    write_reference_lm(folder / "tokenizer")
    texts = [{"text": "the fox", "tokens": [5, 5, 6]}, {"text": "a fox", "tokens": [7, 6]}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    options = ("--texts", folder / "samples.jsonl", "--eval-model", folder / "tokenizer")
    process = run(folder, "generative", *options)
    assert process.status == 0, process.errors
    name, _, entropy, distinct_1, *_ = process.output.splitlines()[-1].strip("|").split("|")
    assert name.strip() == "samples"
    assert float(entropy) == pytest.approx((entropy_bits([5, 5, 6]) + 1) / 2, abs=0.005)
    assert float(distinct_1) == pytest.approx(3 / 5, abs=0.0005)


@pytest.mark.parametrize(("old", "new"), [("--picture", "--plot"), ("--judge", "--eval-model")])
def test_former_names_of_options_are_refused_with_the_current_ones(folder, old, new):
    process = run(folder, "generative", "--checkpoint", "run", old, "x", "--eval-model", "y")
    assert process.sentence == f"error: {old} has been renamed: use {new}"


def test_a_plot_in_an_unknown_format_is_refused_before_the_work(folder):
    options = ("--checkpoint", "run", "--eval-model", "none", "--plot", folder / "t.what")
    process = run(folder, "generative", *options)
    assert process.sentence.startswith("error: --plot must end in one of")
