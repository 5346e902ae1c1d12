"""SPECs: one-line names of orders, which commands take, recipes list and reports print.

    l2r | progressive:m | strided:S[,S..] | strided-ar:S[,S..] | random | groups:s[,s..]
    permuted_groups:s[,s..] | diffusion:T | mixture(0.5*l2r+0.5*strided:2)

`str(policy)` writes a SPEC and `parse_spec` reads it back. The names come from the policies
themselves (`OrderPolicy.spec_forms`); only the syntax of mixtures, which nest, is here.
"""

import difflib
import math
import re

from armd_scale.errors import OrderError
from armd_scale.order.policies import POLICIES, Mixture, MixtureComponent, OrderPolicy
from armd_scale.order.policies.base import SpecForm

_NUMBER = re.compile("[0-9]{1,15}")
_MAX_MIXTURES = 100
_FORMS: dict[str, SpecForm] = {
    form.name: form for policy in POLICIES for form in policy.spec_forms()
}
SPEC_SYNTAX: dict[str, str] = {name: form.syntax for name, form in _FORMS.items()} | {
    "mixture": "mixture(w*ORDER+w*ORDER..)"
}
"""How each SPEC is written, by its name."""
_RENAMED = {"strided-joint": "strided"}
"""Former names of SPECs, with the present ones."""


def parse_spec(text: str) -> OrderPolicy:
    """Return the order that a SPEC names: `parse_spec(str(order)) == order`.

    Raises:
        OrderError: an unknown name (the nearest known one is suggested), or numbers that the order
            does not take.
    """
    spec = text.strip()
    if spec.startswith("mixture(") and spec.endswith(")"):
        return _parse_mixture(spec)
    name, colon, numbers = spec.partition(":")
    if name in _RENAMED:
        present = _RENAMED[name]
        raise OrderError(
            f"order {spec} is now called {present}{colon}{numbers}: write that name "
            "(strided-ar:S is the chain rule over the same slots)"
        )
    form = _FORMS.get(name)
    if form is None or (form.arity == "none" and colon):
        raise _unknown_spec(spec, name)
    if form.arity == "none":
        return form.build(())
    parsed = _parse_numbers(spec, form, numbers)
    if form.arity == "one" and len(parsed) > 1:
        raise _unknown_spec(spec, name)
    return form.build(parsed)


def _parse_numbers(spec: str, form: SpecForm, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    # At most 15 digits: Python refuses to parse thousands of them, and nothing counts that far.
    if not all(_NUMBER.fullmatch(part) and int(part) >= 1 for part in parts):
        raise OrderError(
            f"the numbers of order {form.name} must be whole numbers >= 1 (got '{spec}'): "
            f"write {form.syntax}"
        )
    return tuple(int(part) for part in parts)


def _parse_mixture(spec: str) -> Mixture:
    if spec.count("mixture(") > _MAX_MIXTURES:
        raise OrderError(
            f"an order must contain at most {_MAX_MIXTURES} mixtures (got "
            f"{spec.count('mixture(')}): write fewer"
        )
    components = [
        _parse_component(term, spec)
        for term in _split_outside_brackets(spec.removeprefix("mixture(").removesuffix(")"))
    ]
    return Mixture(components=tuple(components))


def _parse_component(term: str, spec: str) -> MixtureComponent:
    weight_text, _, order = term.partition("*")
    try:
        weight = float(weight_text)
    except ValueError:
        weight = math.nan
    # `float` also reads nan and inf, which are not weights.
    if not (order and math.isfinite(weight) and weight > 0):
        raise OrderError(
            f"a component of a mixture must be a weight > 0 times an order (got '{term}' in "
            f"'{spec}'): write mixture(0.5*l2r+0.5*strided:2)"
        )
    return MixtureComponent(weight=weight, order=parse_spec(order))


def _split_outside_brackets(text: str) -> list[str]:
    """Split at each `+` that is not inside brackets, so that mixtures may nest."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _unknown_spec(spec: str, name: str) -> OrderError:
    # A cutoff of 0 always finds one, so the message never lacks a suggestion.
    nearest = difflib.get_close_matches(name, SPEC_SYNTAX, n=1, cutoff=0.0)[0]
    return OrderError(
        f"an order must be one of {', '.join(SPEC_SYNTAX.values())} (got '{spec}'): "
        f"the nearest is {SPEC_SYNTAX[nearest]}"
    )
