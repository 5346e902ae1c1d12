"""The schema documents itself, cannot be changed, and is drawn here in full for round trips."""

import ast
import inspect
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

from armd_scale.config import schema
from armd_scale.config.schema import Recipe
from armd_scale.order.policies import POLICIES
from tests.support.recipes import SMALL


def configuration_classes() -> list[ast.ClassDef]:
    tree = ast.parse(inspect.getsource(schema))
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("node", configuration_classes(), ids=lambda node: node.name)
def test_every_field_has_its_meaning_on_the_next_line(node: ast.ClassDef) -> None:
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement):
            assert isinstance(following, ast.Expr), ast.unparse(statement)
            assert isinstance(following.value, ast.Constant), ast.unparse(statement)
            text: Any = following.value.value
            assert text.endswith("."), text


@pytest.mark.parametrize("node", configuration_classes(), ids=lambda node: node.name)
def test_configuration_is_frozen_and_by_keyword(node: ast.ClassDef) -> None:
    kind = getattr(schema, node.name)
    assert is_dataclass(kind)
    parameters: Any = kind.__dataclass_params__  # pyright: ignore[reportAttributeAccessIssue]
    assert parameters.frozen
    assert all(field.kw_only for field in fields(kind))


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        SMALL.train.steps = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_policies_are_told_apart() -> None:
    policies = [policy.policy for policy in POLICIES]
    assert policies == [
        *("l2r", "progressive", "strided", "random", "groups", "permuted_groups"),
        *("diffusion", "mixture", "stages"),
    ]


def test_sections_stand_in_the_order_of_the_data() -> None:
    sections = "run data order model parallel optim train checkpoint eval log"
    assert list(Recipe.__dataclass_fields__) == sections.split()
