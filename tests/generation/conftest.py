"""Tokenizers of generation tests."""

import io

import pytest
import sentencepiece

from armd_scale.data.tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="session")
def sentencepiece_with_blanks() -> SentencePieceTokenizer:
    """A model of the library's defaults: a blank in front of every text, others merged."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over"] * 20),
        model_writer=model,
        vocab_size=25,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), source="the model")
