"""The generated key reference: complete, and equal to the section of recipes/README.md."""

import dataclasses
from pathlib import Path

from armd_scale.config import schema
from armd_scale.config.codec import key_paths
from armd_scale.config.reference import HEADING, field_docs, key_reference, update_page
from armd_scale.order.policies import POLICIES

PAGE = Path(__file__).parents[2] / "recipes" / "README.md"


def test_the_page_equals_the_schema() -> None:
    _, heading, section = PAGE.read_text(encoding="utf-8").partition(HEADING)
    command = "python -m armd_scale.config.reference recipes/README.md"
    assert heading + section == key_reference(), f"run {command}"


def test_every_key_has_a_row() -> None:
    reference = key_reference()
    for path in key_paths(schema.Recipe):
        section, _, key = path.partition(".")
        if key:
            assert f"### `{section}`" in reference
            assert f"| `{key}` |" in reference, path
    for policy in POLICIES:
        assert f"### `order: {{policy: {policy.policy}}}`" in reference
        for field in dataclasses.fields(policy):  # pyright: ignore[reportArgumentType]
            assert f"| `{field.name}` |" in reference, field.name


def test_rows_show_type_default_and_meaning() -> None:
    reference = key_reference()
    assert "| `seed` | a whole number | `1234` | Seed of initial weights" in reference
    assert "| `zero_stage` | one of 0, 1, 2, 3 | `1` | Split over data parallel" in reference
    assert "| `train.N.weight` | a number |  | Share of the samples" in reference
    assert "| `components.N.weight` | a number |  | Share of the samples" in reference


def test_documentation_of_inherited_keys_is_found() -> None:
    groups = next(policy for policy in POLICIES if policy.policy == "groups")
    assert field_docs(groups)["sizes"] == "Group sizes, in tokens."


def test_updating_a_page_replaces_its_last_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{HEADING}\nold\n")
    update_page(page)
    assert page.read_text() == f"# Title\n\n{key_reference()}"
