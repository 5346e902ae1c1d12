"""Recipes that grow, nest or chain without end, or hold values that nothing can use."""

import os
from pathlib import Path

import pytest

from armd_scale.config.load import load_recipe
from armd_scale.errors import RecipeError


def test_a_recipe_that_grows_through_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="must have at most 100,000 values"):
        load_recipe(path)


@pytest.mark.parametrize("depth", [60, 5000])
def test_a_recipe_that_is_nested_too_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("a: " + "[" * depth + "]" * depth)
    with pytest.raises(RecipeError, match=r"at most .*50 levels"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"at most .*50 levels"):
        load_recipe("recipes/demo_cpu.yaml", [f"run.name={'[' * depth}{']' * depth}"])


def test_a_pipe_a_folder_and_a_huge_file_are_no_recipes(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "pipe.yaml", tmp_path / "huge.yaml"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(RecipeError, match="a recipe must be a file"):
            load_recipe(path)
    huge.write_text("#" * (1 << 22) + "\n")
    with pytest.raises(RecipeError, match="must have at most 4194304 bytes"):
        load_recipe(huge)


def test_a_long_chain_of_recipes_is_refused(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")
    with pytest.raises(RecipeError, match="must extend each other at most 32 times"):
        load_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object:os.system x", "!!binary aGk=", "!!timestamp x", "!!timestamp 2001-01-01",
        "!!bool x", "!!set {a}", "!!map x", "!!foo bar", "!!int x", "0x" + "f" * 5000, "9" * 5000,
        '"\\uD800"', '"a\\0b"', "[" * 9999, "&a [*a]", ".nan", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("at", ["run:\n  name: {}\n", "extends: {}\n", "? {}\n: 1\n"])
def test_hostile_values_are_refused_in_one_sentence(tmp_path: Path, at: str, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(at.format(text))
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
