"""Paths of a recipe: home, environment variables, and patterns of training data."""

from pathlib import Path

import pytest

from armd_scale.config.load import dump_recipe, load_recipe
from armd_scale.config.schema import BlendSource, DistillationConfig
from armd_scale.errors import RecipeError
from tests.support.recipes import SMALL, SMALL_YAML, bend


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SCRATCH", "/scratch/ann")
    monkeypatch.delenv("UNSET", raising=False)
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    return path


@pytest.fixture
def shards(small: Path) -> Path:
    """A folder with the indices of some datasets, which is all that a pattern looks at."""
    folder = small.parent / "shards"
    (folder / "more").mkdir(parents=True)
    for name in ("web_10", "web_2", "web_valid", "book", "more/web_3"):
        (folder / f"{name}.idx").touch()
    (folder / "web_4.bin").touch()
    return folder


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_every_path_of_a_recipe_is_expanded(small: Path) -> None:
    distillation = "{checkpoint: $SCRATCH/teacher, weight: 1}"
    recipe = load_recipe(
        small,
        [
            "run.folder=~/runs/a",
            "data.train=[{path: $SCRATCH/a, weight: 1}, {path: [~/b, '${SCRATCH}/c'], weight: 2}]",
            "data.valid=${SCRATCH}/valid",
            "model.init_from=$SCRATCH/base",
            "checkpoint.resume=~/runs/b",
            f"train.distillation={distillation}",
        ],
    )
    assert recipe.run.folder == "/home/ann/runs/a"
    assert recipe.data.train == (
        BlendSource(path="/scratch/ann/a", weight=1.0),
        BlendSource(path=("/home/ann/b", "/scratch/ann/c"), weight=2.0),
    )
    assert recipe.data.valid == "/scratch/ann/valid"
    assert recipe.model.init_from == "/scratch/ann/base"
    assert recipe.checkpoint.resume == "/home/ann/runs/b"
    teacher = DistillationConfig(checkpoint="/scratch/ann/teacher", weight=1.0)
    assert recipe.train.distillation == teacher


def test_the_file_that_a_recipe_extends_is_expanded(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPES", str(small.parent))
    path = small.parent / "top.yaml"
    path.write_text("extends: $RECIPES/small.yaml\n")
    assert load_recipe(path) == SMALL
    path.write_text("\nextends: $UNSET/small.yaml\n")
    assert refusal(path).startswith("top.yaml:2: extends must use environment variables that are")


def test_a_variable_that_is_not_set_is_named_with_its_place(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        "run.folder must use environment variables that are set (got '$UNSET/a', and UNSET is "
        "not): set UNSET, or write the path out"
    )
    assert refusal(small, "run.folder=$UNSET/a") == f"override run.folder=$UNSET/a: {message}"
    small.write_text(SMALL_YAML.replace("valid: shards/valid", "valid: '${UNSET}'"))
    assert refusal(small).startswith("small.yaml:2: data.valid must use environment variables")
    monkeypatch.setenv("UNSET", "")
    assert "and UNSET is not" in refusal(small)
    # A value that is replaced need not be valid.
    assert load_recipe(small, ["data.valid=shards/valid"]) == SMALL


def test_the_recipe_of_a_run_is_taken_as_it_was_recorded(small: Path) -> None:
    small.write_text(SMALL_YAML.replace("runs/small", "$UNSET/*"))
    assert load_recipe(small, expand_paths=False).run.folder == "$UNSET/*"


def test_a_pattern_becomes_its_sorted_matches(shards: Path, small: Path) -> None:
    recipe = load_recipe(small, [f"data.train={shards}/web_*"])
    names = ("web_10", "web_2", "web_valid")
    source = BlendSource(path=tuple(str(shards / name) for name in names), weight=1.0)
    assert recipe.data.train == (source,)
    assert recipe.data.sources[0].prefixes == source.path
    copy = small.parent / "copy.yaml"
    copy.write_text(dump_recipe(recipe))
    (shards / "web_5.idx").touch()
    assert load_recipe(copy) == recipe


def test_patterns_in_a_blend(shards: Path, small: Path) -> None:
    train = f"[{{path: {shards}/web_*, weight: 3}}, {{path: {shards}/b*, weight: 1}}]"
    recipe = load_recipe(small, [f"data.train={train}"])
    first, second = recipe.data.sources
    assert (len(first.prefixes), first.weight) == (3, 3.0)
    assert second == BlendSource(path=str(shards / "book"), weight=1.0)
    train = f"[{{path: [{shards}/book, {shards}/web_1*], weight: 1}}]"
    recipe = load_recipe(small, [f"data.train={train}"])
    assert recipe.data.sources[0].prefixes == (str(shards / "book"), str(shards / "web_10"))


def test_one_match_is_a_single_prefix_and_folders_may_be_patterns(
    shards: Path, small: Path
) -> None:
    assert load_recipe(small, [f"data.train={shards}/b*"]).data.train == str(shards / "book")
    recipe = load_recipe(small, [f"data.train={shards}/**/web_3"])
    assert recipe.data.train == str(shards / "more" / "web_3")


def test_a_name_with_a_star_in_it_is_no_pattern(shards: Path, small: Path) -> None:
    (shards / "web_*.idx").touch()
    assert load_recipe(small, [f"data.train={shards}/web_*"]).data.train == f"{shards}/web_*"


def test_a_pattern_without_matches_is_refused(shards: Path, small: Path) -> None:
    message = refusal(small, f"data.train={shards}/none_*")
    assert "data.train must match at least one dataset (got '" in message
    assert "none_*.idx): fix the pattern, or build the shards with tools/preprocess.py" in message
    blend = f"data.train=[{{path: {shards}/book, weight: 1}}, {{path: x*, weight: 1}}]"
    assert "data.train.1.path must match at least one dataset (got 'x*'" in refusal(small, blend)


def test_a_pattern_that_matches_the_validation_data_is_refused(shards: Path, small: Path) -> None:
    valid = f"data.valid={shards}/../shards/web_valid"
    message = refusal(small, f"data.train={shards}/web_*", valid)
    assert "data.train must not match the validation data" in message
    assert "web_valid): write a narrower pattern" in message


def test_a_source_without_prefixes_is_refused(small: Path) -> None:
    message = refusal(small, "data.train=[{path: [], weight: 1}]")
    assert "data.train.0.path must name at least one prefix (got [])" in message


def test_overrides_of_the_recipe_are_applied_before_paths_are_expanded(small: Path) -> None:
    small.write_text(SMALL_YAML.replace("runs/small", "$UNSET/small"))
    assert load_recipe(small, ["run.folder=runs/small"]) == bend(SMALL, {})
