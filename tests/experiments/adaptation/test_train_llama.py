"""The pretrained model of experiments: bytes in, a folder that transformers reads out."""

from pathlib import Path

import pytest

from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import TrainingError
from armd_scale.experiments.adaptation.train_llama import (
    score_llama,
    train_llama,
    write_byte_tokenizer,
)
from tests.support.cli import contents, tiny_recipe, write_text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    write_byte_tokenizer(folder)
    return folder


def test_a_token_is_a_byte(tokenizer: Path) -> None:
    found = load_tokenizer(tokenizer)
    text = "a\r\n  é\x00\u2581🙂"
    (ids,) = found.encode_batch([text])
    assert len(ids) == len(text.encode())
    assert found.decode(ids.tolist()) == text
    assert (found.vocab_size, found.eod) == (257, 256)


def test_it_learns_and_repeats(tokenizer: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, write_text(tmp_path / "text"))
    nats = []
    for name, steps in (("short", 1), ("long", 40), ("again", 40)):
        train_llama(recipe, tmp_path / name, tokenizer=tokenizer, steps=steps, learning_rate=1e-2)
        nats.append(score_llama(tmp_path / name, recipe))
    assert nats[1] < nats[0] - 1
    assert contents(tmp_path / "long") == contents(tmp_path / "again")
    with pytest.raises(TrainingError, match=r"must not exist yet, and .*long does"):
        train_llama(recipe, tmp_path / "long", tokenizer=tokenizer, steps=1, learning_rate=1e-2)
    assert load_tokenizer(tmp_path / "long").fingerprint == load_tokenizer(tokenizer).fingerprint
