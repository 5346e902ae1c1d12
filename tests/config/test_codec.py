"""The reader on types of its own, apart from what the schema happens to use."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from armd_scale.config.codec import DataclassDecoder, key_paths, to_dict
from armd_scale.errors import RecipeError


class Shape:
    """Abstract: a value is a Circle or a Square."""


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    policy: ClassVar[str] = "circle"
    radius: float


@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    policy: ClassVar[str] = "square"
    side: float
    turned: bool = False


@dataclass(frozen=True, kw_only=True)
class Placed:
    left: int
    shape: Shape = field(metadata={"flattened": True})


@dataclass(frozen=True, kw_only=True)
class Paper:
    ink: Literal["black", 2]
    title: str | None
    best: Shape
    shapes: tuple[Placed, ...] = ()
    size: tuple[int, float] = (1, 2.0)


VARIANTS = {Shape: (Circle, Square)}
PAPER = Paper(
    ink=2,
    title=None,
    best=Circle(radius=1.5),
    shapes=(Placed(left=3, shape=Square(side=2.0, turned=True)),),
    size=(4, 5.0),
)
PLAIN: dict[str, Any] = {
    "ink": 2,
    "title": None,
    "best": {"policy": "circle", "radius": 1.5},
    "shapes": [{"left": 3, "policy": "square", "side": 2.0, "turned": True}],
    "size": [4, 5.0],
}


def read(**changes: object) -> Any:
    return DataclassDecoder(Paper, lambda path: f"<{path}>", VARIANTS).decode({**PLAIN, **changes})


def test_plain_and_typed_are_two_forms_of_one_thing() -> None:
    assert read() == PAPER
    assert to_dict(PAPER) == PLAIN


def test_whole_numbers_become_numbers_where_numbers_are_asked_for() -> None:
    radius = read(best={"policy": "circle", "radius": 2}).best.radius
    assert isinstance(radius, float)
    assert radius == 2.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ink": True}, "<ink>: ink must be one of black, 2 (got true)"),
        ({"ink": "blak"}, "<ink>: ink must be one of black, 2 (got 'blak'); did you mean black?"),
        ({"title": 3}, "<title>: title must be text (got 3); put it in quotes"),
        (
            {"title": "a", "size": [1]},
            "<size>: size must be a list of 2, a whole number each (got [1])",
        ),
        ({"size": [1, "x"]}, "<size.1>: size.1 must be a number (got 'x')"),
        ({"size": [1, 10**400]}, "<size.1>: size.1 must be a number (got 1000000000"),
        (
            {"best": {"radius": 1}},
            "<best.policy>: best.policy is missing: set it to one of circle, square",
        ),
        (
            {"shapes": [{"left": 1, "policy": "circle", "radiu": 1}]},
            "<shapes.0.radiu>: shapes.0.radiu is not a known key; did you mean radius?",
        ),
        (
            {"shapes": [{"policy": "circle", "radius": 1}]},
            "<shapes.0.left>: shapes.0.left is missing: set it to a whole number",
        ),
        ({"shapes": [7]}, "<shapes.0>: shapes.0 must be a mapping of left, shape (got 7)"),
    ],
)
def test_errors_name_place_key_and_value(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(**changes)
    assert str(caught.value).startswith(sentence)


def test_key_paths_leave_out_tags_and_alternatives() -> None:
    assert key_paths(Placed) == ["left", "shape"]
    assert key_paths(Square) == ["side", "turned"]
