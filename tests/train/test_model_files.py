"""Files of the tokenizer and of the source model that go into every checkpoint."""

import hashlib
import json
from pathlib import Path

import pytest

from armd_scale.config.schema import Recipe
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ShardError, TokenizerError
from armd_scale.train.model_files import tokenizer_contents
from tests.support.eval_data import add_manifest


def test_the_tokenizer_is_read_from_beside_the_data(recipe: Recipe, tmp_path: Path) -> None:
    assert tokenizer_contents(recipe) == {}
    tokenizer = train_sentencepiece(["a text\n" * 20], 270)
    add_manifest(recipe, "a", fingerprint=tokenizer.fingerprint)
    assert tokenizer_contents(recipe) == {}
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "id_rsa").write_text("not a file of a tokenizer")
    contents = tokenizer_contents(recipe)
    assert sorted(contents) == ["tokenizer.model", "tokenizer_config.json"]
    model = (tmp_path / "tokenizer" / "tokenizer.model").read_bytes()
    assert contents["tokenizer.model"] == model
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(TokenizerError, match="must hold the tokenizer that the shards were made"):
        tokenizer_contents(recipe)


@pytest.mark.parametrize("starts_with_bos", [True, False])
def test_texts_of_a_model_start_as_the_documents_of_its_shards(
    recipe: Recipe, tmp_path: Path, starts_with_bos: bool
) -> None:
    """Also where their tokenizer would start them otherwise: earlier shards have no BOS."""
    tokenizer = train_sentencepiece(["a text\n" * 20], 270)
    tokenizer.save(tmp_path / "tokenizer")
    prefix = (1,) if starts_with_bos else ()
    add_manifest(recipe, "a", fingerprint=tokenizer.fingerprint, prefix_ids=prefix)
    (tmp_path / "copy").mkdir()
    for name, content in tokenizer_contents(recipe).items():
        (tmp_path / "copy" / name).write_bytes(content)
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.prefix_ids == prefix
    assert copy.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("folder", ["../home", "/root", "a/../../home", "link", "", "a\0b"])
def test_a_tokenizer_outside_the_folder_of_the_data_is_refused(
    recipe: Recipe, tmp_path: Path, folder: object
) -> None:
    add_manifest(recipe, "a")
    (tmp_path / "link").symlink_to(Path.home())
    path = tmp_path / "a.json"
    manifest = json.loads(path.read_text())
    manifest["tokenizer"]["folder"] = folder
    del manifest["manifest_sha256"]  # as whoever makes such a manifest would do
    path.write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"must be in the folder of their manifest|without NUL"):
        tokenizer_contents(recipe)


def test_a_link_among_the_files_of_a_tokenizer_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret"
    secret.write_text("private")
    add_manifest(recipe, "a", fingerprint=hashlib.sha256(b"private").hexdigest())
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").symlink_to(secret)
    with pytest.raises(TokenizerError, match="a link out of its folder"):
        tokenizer_contents(recipe)
