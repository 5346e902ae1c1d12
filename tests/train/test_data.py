"""The data of a run: vocabulary size, tokenizers, held-out windows."""

from pathlib import Path

import pytest

from armd_scale.config.resolve import resolve
from armd_scale.config.schema import Recipe
from armd_scale.errors import OrderError, RecipeError, ShardError, TokenizerError
from armd_scale.order.policies import LeftToRight, Strided
from armd_scale.train.data import (
    check_document_starts,
    check_tokenizers,
    open_eval_data,
    resolve_from_shards,
)
from tests.support.cli import VOCAB
from tests.support.eval_data import add_manifest
from tests.support.recipes import bend


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


def test_documents_that_start_in_two_ways_are_refused(recipe: Recipe) -> None:
    add_manifest(recipe, "a", prefix_ids=(1,))
    add_manifest(recipe, "b")
    with pytest.raises(TokenizerError, match="must all start with BOS, or none of them"):
        check_document_starts(recipe)


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
    check_document_starts(bend(recipe, {"data.packing": packing}))
    assert ("preprocess with --prepend-bos" in caplog.text) is is_said


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
