"""A judge made by transformers itself, and figures against its own loss."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from armd_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.generative_perplexity import (
    GeneratedText,
    generative_perplexity,
    read_texts,
)
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.eval.text_metrics import diversity

MADE = [GeneratedText("the quick brown fox", [3, 4, 5, 6]), GeneratedText("fox the fox", [6, 3, 6])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    train_sentencepiece(["the quick brown fox\n" * 40], 280).save(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_perplexity_is_that_of_the_judges_own_loss(folder):
    tokenizer = load_tokenizer(folder)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    nats = tokens = 0
    for one in MADE:
        ids = torch.tensor([[tokenizer.eod, *tokenizer.encode_batch([one.text])[0].tolist()]])
        ids = ids[:, :12]
        nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    found = generative_perplexity(MADE, ReferenceLM(folder))
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert (found.num_texts, found.num_tokens) == (2, tokens)
    assert found.diversity == diversity([[3, 4, 5, 6], [6, 3, 6]])


def test_texts_of_a_file(tmp_path):
    path = tmp_path / "made.jsonl"
    path.write_text("".join(json.dumps({**vars(one), "rounds": 3}) + "\n" for one in MADE))
    assert read_texts(path) == MADE
    path.write_text('{"text": "a"}\n')
    with pytest.raises(ArmdError, match=r"line 1 must be a record of tools/generate.py --json"):
        read_texts(path)
    with pytest.raises(ArmdError, match="cannot be read"):
        read_texts(tmp_path / "none")


def test_what_cannot_be_judged(folder, tmp_path):
    with pytest.raises(ArmdError, match="got 1 of which 1 are empty"):
        generative_perplexity([GeneratedText("", [])], ReferenceLM(folder))
    train_sentencepiece(["the quick brown fox\n" * 40], 280).save(tmp_path)
    with pytest.raises(ArmdError, match="--judge must be a folder that transformers can load"):
        ReferenceLM(tmp_path)
