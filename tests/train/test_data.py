"""The data of a run: vocabulary size, tokenizers, held-out windows."""

import hashlib
import json
from pathlib import Path

import pytest

from armd_scale.config.resolve import resolve
from armd_scale.config.schema import BlendSource, Recipe
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import OrderError, RecipeError, ShardError, TokenizerError
from armd_scale.order.policies import LeftToRight, Strided
from armd_scale.train.data import (
    check_tokenizers,
    open_eval_data,
    resolve_from_shards,
    tokenizer_contents,
)
from tests.support.cli import VOCAB, tiny_recipe, write_text
from tests.support.eval_data import write_manifest
from tests.support.recipes import bend


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe without vocabulary size, with two training sources and one of held-out data."""
    for name in ("a", "b", "valid"):
        write_text(tmp_path / name, num_documents=5)
    train = tuple(BlendSource(path=str(tmp_path / name), weight=1.0) for name in "ab")
    valid = str(tmp_path / "valid")
    return bend(
        tiny_recipe(tmp_path, valid),
        {"data.train": train, "data.valid": valid, "model.vocab_size": None},
    )


def add_manifest(
    recipe: Recipe,
    name: str,
    *,
    vocab_size: int = VOCAB,
    fingerprint: str = "f",
    prefix_ids: tuple[int, ...] = (),
) -> None:
    write_manifest(
        str(Path(recipe.run.folder).parent / name),
        tokens=0,
        text_bytes=1,
        vocab_size=vocab_size,
        fingerprint=fingerprint,
        prefix_ids=prefix_ids,
    )


def test_the_vocabulary_comes_from_the_manifests(recipe: Recipe) -> None:
    add_manifest(recipe, "a", vocab_size=60)
    add_manifest(recipe, "b", vocab_size=62)
    assert resolve_from_shards(recipe).model.vocab_size == 62
    larger = bend(recipe, {"model.vocab_size": 70})
    assert resolve_from_shards(larger) == resolve(larger)
    with pytest.raises(TokenizerError, match=r"model\.vocab_size must be >= 62.*\(got 61\)"):
        resolve_from_shards(bend(recipe, {"model.vocab_size": 61}))


def test_without_a_manifest_the_vocabulary_size_must_be_set(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_from_shards(recipe)
    assert "model.vocab_size must be set" in str(caught.value)
    assert f"{tmp_path / 'a'}.json does not exist" in str(caught.value)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ShardError, match=r"a\.bin does not exist"):
        resolve_from_shards(recipe)


def test_all_data_must_have_one_tokenizer(recipe: Recipe) -> None:
    add_manifest(recipe, "a")
    add_manifest(recipe, "b")
    check_tokenizers(recipe, None)
    add_manifest(recipe, "valid", fingerprint="g")
    with pytest.raises(TokenizerError, match=r"the same tokenizer \(found 2 different ones in"):
        check_tokenizers(recipe, None)
    check_tokenizers(bend(recipe, {"data.valid": None}), None)


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


def test_documents_that_start_in_two_ways_are_refused(recipe: Recipe) -> None:
    add_manifest(recipe, "a", prefix_ids=(1,))
    add_manifest(recipe, "b")
    with pytest.raises(TokenizerError, match="must all start with BOS, or none of them"):
        check_tokenizers(recipe, None)


@pytest.mark.parametrize(
    ("packing", "prefix_ids", "is_said"),
    [("documents", (), True), ("documents", (1,), False), ("concat", (), False)],
)
def test_documents_without_bos_are_said_where_each_is_ordered_alone(
    recipe: Recipe,
    caplog: pytest.LogCaptureFixture,
    packing: str,
    prefix_ids: tuple[int, ...],
    is_said: bool,
) -> None:
    add_manifest(recipe, "a", prefix_ids=prefix_ids)
    check_tokenizers(bend(recipe, {"data.packing": packing}), None)
    assert ("preprocess with --prepend-bos" in caplog.text) is is_said


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


def test_eval_data_are_opened_only_if_the_recipe_evaluates(recipe: Recipe) -> None:
    recipe = resolve(recipe, vocab_size=VOCAB)
    assert open_eval_data(recipe) is None
    evaluating = bend(recipe, {"eval.every_steps": 1, "eval.orders": ("l2r", "strided-ar:2")})
    eval_data = open_eval_data(evaluating)
    assert eval_data is not None
    assert eval_data.orders == (LeftToRight(), Strided(streams=(2,), joint=False))
    assert eval_data.windows.num_windows > 0
    with pytest.raises(OrderError):
        open_eval_data(bend(evaluating, {"eval.orders": ("sideways",)}))
    small = open_eval_data(bend(evaluating, {"model.vocab_size": 2}))
    assert small is not None
    with pytest.raises(ShardError, match="below the model's vocabulary of 2"):
        small.windows.window(0)
