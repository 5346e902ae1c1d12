"""Generative perplexity against the reference model's own loss, and files of texts."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.generative_perplexity import (
    GeneratedText,
    generative_perplexity,
    read_texts,
)
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.eval.text_metrics import diversity

TEXTS = [
    GeneratedText("the quick brown fox", [3, 4, 5, 6]),
    GeneratedText("fox the fox", [6, 3, 6]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small GPT-2 of transformers with 12 positions, fewer than the longer text has tokens."""
    folder = tmp_path_factory.mktemp("reference")
    train_sentencepiece(["the quick brown fox\n" * 40], 280).save(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_perplexity_equals_the_loss_of_transformers(folder):
    tokenizer = load_tokenizer(folder)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    nats = num_tokens = 0
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.bos, *tokenizer.encode_batch([text.text])[0].tolist()]])
        ids = ids[:, :12]
        nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    quality = generative_perplexity(TEXTS, ReferenceLM(folder))
    assert quality.perplexity == pytest.approx(math.exp(nats / num_tokens), rel=1e-5)
    assert (quality.num_texts, quality.num_tokens) == (2, num_tokens)
    assert quality.diversity == diversity([[3, 4, 5, 6], [6, 3, 6]])


def test_texts_are_read_from_a_file_of_the_generate_command(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({**vars(text), "rounds": 3}) + "\n" for text in TEXTS))
    assert read_texts(path) == TEXTS
    path.write_text('{"text": "a"}\n')
    with pytest.raises(ArmdError, match=r"line 1 must be a record of tools/generate.py --json"):
        read_texts(path)
    with pytest.raises(ArmdError, match="cannot be read"):
        read_texts(tmp_path / "none")


def test_empty_texts_are_refused(folder):
    with pytest.raises(ArmdError, match=r"no empty ones \(got 1 texts, 1 of them empty\)"):
        generative_perplexity([GeneratedText("", [])], ReferenceLM(folder))


def test_a_folder_without_a_model_is_refused(tmp_path):
    train_sentencepiece(["the quick brown fox\n" * 40], 280).save(tmp_path)
    with pytest.raises(ArmdError, match="--eval-model must be a folder that transformers can load"):
        ReferenceLM(tmp_path)
