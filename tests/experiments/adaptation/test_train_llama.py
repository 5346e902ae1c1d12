"""The pretrained Llama of the experiment: byte tokens in, an HF folder out."""

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
    folder = tmp_path_factory.mktemp("bytes") / "tokenizer"
    write_byte_tokenizer(folder)
    return folder


def test_a_token_is_a_byte(tokenizer: Path) -> None:
    byte_tokenizer = load_tokenizer(tokenizer)
    text = "a\r\n  é\x00\u2581🙂"
    (ids,) = byte_tokenizer.encode_batch([text])
    assert len(ids) == len(text.encode())
    assert byte_tokenizer.decode(ids.tolist()) == text
    assert (byte_tokenizer.vocab_size, byte_tokenizer.eod) == (257, 256)


def test_training_lowers_the_loss_and_is_reproducible(tokenizer: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, write_text(tmp_path / "text"))
    nats = []
    for name, steps in (("short", 1), ("long", 40), ("again", 40)):
        train_llama(recipe, tmp_path / name, tokenizer=tokenizer, steps=steps, learning_rate=1e-2)
        nats.append(score_llama(tmp_path / name, recipe))
    assert nats[1] < nats[0] - 1
    assert contents(tmp_path / "long") == contents(tmp_path / "again")
    with pytest.raises(TrainingError, match=r"must not exist yet \(got .*long\)"):
        train_llama(recipe, tmp_path / "long", tokenizer=tokenizer, steps=1, learning_rate=1e-2)
    assert load_tokenizer(tmp_path / "long").fingerprint == load_tokenizer(tokenizer).fingerprint
