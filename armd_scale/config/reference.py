"""Generate the key reference of recipes/README.md from the schema and the order policies.

`python -m armd_scale.config.reference recipes/README.md` rewrites the page's last section.
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

from armd_scale.config.codec import is_flattened, is_required
from armd_scale.config.messages import describe_type, format_value
from armd_scale.config.schema import Recipe
from armd_scale.order.policies import POLICIES, OrderPolicy

HEADING = "## Key reference\n"


def key_reference() -> str:
    """Return a Markdown section with a table of all keys, section by section."""
    parts = [
        HEADING,
        "Generated from `armd_scale/config/schema.py` and `armd_scale/order/policies/` by "
        "`python -m armd_scale.config.reference recipes/README.md`.\n",
    ]
    hints = typing.get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        kind = hints[field.name]
        if kind is OrderPolicy:
            parts += [_policy_table(policy) for policy in POLICIES]
        else:
            parts.append(f"### `{field.name}`\n\n{_summary(kind)}\n\n{_table(kind)}")
    return "\n".join(parts)


def update_page(page: Path) -> None:
    """Replace everything from the heading of the key reference to the end of a page."""
    text = page.read_text(encoding="utf-8").partition(HEADING)[0]
    page.write_text(text + key_reference(), encoding="utf-8")


def field_docs(kind: type) -> dict[str, str]:
    """Return the string under each field of a dataclass, those of its base classes included."""
    docs: dict[str, str] = {}
    # Base classes first, so that a subclass may replace the text of an inherited field.
    for owner in reversed(kind.__mro__):
        if dataclasses.is_dataclass(owner):
            # A string under a field is an expression that Python discards, so it is read from the
            # source.
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
            assert isinstance(body, ast.ClassDef)
            docs |= _strings_under_fields(body)
    return docs


def _strings_under_fields(body: ast.ClassDef) -> dict[str, str]:
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
            case _:
                pass
    return docs


def _policy_table(policy: type[OrderPolicy]) -> str:
    title = f"### `order: {{policy: {policy.policy}}}`\n\n{_summary(policy)}\n"
    has_keys = bool(dataclasses.fields(typing.cast(Any, policy)))
    return f"{title}\n{_table(policy)}" if has_keys else title


def _table(kind: type) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|", *_rows(kind, "")]
    return "\n".join(rows) + "\n"


def _rows(kind: Any, prefix: str) -> list[str]:
    rows: list[str] = []
    hints, docs = typing.get_type_hints(kind), field_docs(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if is_flattened(field):
            cells = ("(keys of an order)", "a mapping", "", docs[field.name])
        else:
            default = "" if is_required(field) else f"`{_default(field)}`"
            cells = (f"`{key}`", _describe(hint), default, docs[field.name])
        rows.append("| " + " | ".join(cells) + " |")
        for inner, suffix in _sections_in(hint):
            rows += _rows(inner, f"{key}{suffix}.")
    return rows


def _describe(hint: Any) -> str:
    sections = _sections_in(hint)
    # The keys of a section have rows of their own: `a mapping of path, weight` becomes `a mapping`.
    return describe_type(hint) if not sections else describe_type(hint).split(" of ")[0]


def _default(field: "dataclasses.Field[Any]") -> str:
    if dataclasses.is_dataclass(field.default):
        return "{}"
    return format_value(field.default).replace("'", "")


def _sections_in(hint: Any) -> list[tuple[type, str]]:
    """Return the dataclasses that a value of a type consists of; list items get the suffix `.N`."""
    if dataclasses.is_dataclass(hint):
        return [(typing.cast(type, hint), "")]
    suffix = ".N" if typing.get_origin(hint) is tuple else ""
    members = typing.get_args(hint)
    return [(kind, suffix + inner) for m in members for kind, inner in _sections_in(m)]


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]


if __name__ == "__main__":
    update_page(Path(sys.argv[1]))
