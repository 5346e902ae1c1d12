"""What a run reads, checked before it writes."""

from pathlib import Path

import pytest

from armd_scale.config.resolve import resolve
from armd_scale.config.schema import BlendSource, Recipe
from armd_scale.errors import OrderError, RecipeError, ShardError, TokenizerError
from armd_scale.order.policies import LeftToRight, Strided
from armd_scale.train.data import (
    check_tokenizers,
    open_held_out,
    resolve_from_shards,
    tokenizer_folder,
)
from tests.support.cli import VOCAB, tiny_recipe, write_text
from tests.support.held_out import write_manifest
from tests.support.recipes import bend


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Without a vocabulary of its own; two sources of training data, one of held-out data."""
    for name in ("a", "b", "valid"):
        write_text(tmp_path / name, num_documents=5)
    train = tuple(BlendSource(path=str(tmp_path / name), weight=1.0) for name in "ab")
    valid = str(tmp_path / "valid")
    return bend(
        tiny_recipe(tmp_path, valid),
        {"data.train": train, "data.valid": valid, "model.vocab_size": None},
    )


def note(recipe: Recipe, name: str, *, vocab_size: int = VOCAB, fingerprint: str = "f") -> None:
    prefix = str(Path(recipe.run.folder).parent / name)
    write_manifest(prefix, tokens=0, text_bytes=1, vocab_size=vocab_size, fingerprint=fingerprint)


def test_the_vocabulary_comes_from_the_manifests(recipe: Recipe) -> None:
    note(recipe, "a", vocab_size=60)
    note(recipe, "b", vocab_size=62)
    assert resolve_from_shards(recipe).model.vocab_size == 62
    larger = bend(recipe, {"model.vocab_size": 70})
    assert resolve_from_shards(larger) == resolve(larger)
    with pytest.raises(TokenizerError, match=r"must fit model\.vocab_size=61, and has 62 tokens"):
        resolve_from_shards(bend(recipe, {"model.vocab_size": 61}))


def test_without_a_manifest_it_must_be_given(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_from_shards(recipe)
    assert "model.vocab_size must be given" in str(caught.value)
    assert f"{tmp_path / 'a'}.json does not exist" in str(caught.value)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ShardError, match=r"a\.bin does not exist"):
        resolve_from_shards(recipe)


def test_all_data_come_from_one_tokenizer(recipe: Recipe) -> None:
    note(recipe, "a")
    note(recipe, "b")
    check_tokenizers(recipe, None)
    note(recipe, "valid", fingerprint="g")
    with pytest.raises(TokenizerError, match="must come from one tokenizer, got 2 for"):
        check_tokenizers(recipe, None)
    check_tokenizers(bend(recipe, {"data.valid": None}), None)


def test_the_tokenizer_lies_beside_the_data(recipe: Recipe, tmp_path: Path) -> None:
    assert tokenizer_folder(recipe) is None
    note(recipe, "a")
    assert tokenizer_folder(recipe) is None
    (tmp_path / "tokenizer").mkdir()
    assert tokenizer_folder(recipe) == tmp_path / "tokenizer"


def test_held_out_data_are_opened_where_they_are_scored(recipe: Recipe) -> None:
    recipe = resolve(recipe, vocab_size=VOCAB)
    assert open_held_out(recipe) is None
    scored = bend(recipe, {"eval.every_steps": 1, "eval.orders": ("l2r", "strided-ar:2")})
    held_out = open_held_out(scored)
    assert held_out is not None
    assert held_out.orders == (LeftToRight(), Strided((2,), joint=False))
    assert held_out.windows.num_windows > 0
    with pytest.raises(OrderError):
        open_held_out(bend(scored, {"eval.orders": ("sideways",)}))
    small = open_held_out(bend(scored, {"model.vocab_size": 2}))
    assert small is not None
    with pytest.raises(ShardError, match="below the model's vocabulary of 2"):
        small.windows.window(0)
