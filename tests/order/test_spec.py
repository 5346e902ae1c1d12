"""SPECs: every order has one, and parsing it gives the order back."""

import pytest
from hypothesis import given

from armd_scale.errors import OrderError
from armd_scale.order.policies import (
    Diffusion,
    Groups,
    LeftToRight,
    Mixture,
    MixtureComponent,
    OrderPolicy,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
)
from armd_scale.order.spec import SPEC_SYNTAX, parse_spec
from tests.support.strategies import orders


@given(order=orders)
def test_a_written_spec_reads_back(order: OrderPolicy) -> None:
    assert parse_spec(str(order)) == order


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        ("l2r", LeftToRight()),
        ("progressive:32", Progressive.constant(32)),
        ("strided-ar:4", Strided(streams=(4,), joint=False)),
        ("strided:1,2,4", Strided(streams=(1, 2, 4), joint=True)),
        ("random", RandomPermutation()),
        ("groups:4", Groups(sizes=(4,))),
        ("permuted_groups:4,8", PermutedGroups(sizes=(4, 8))),
        ("diffusion:64", Diffusion(num_timesteps=64)),
        (
            "mixture(0.5*l2r+0.5*strided-ar:2)",
            Mixture(
                components=(
                    MixtureComponent(weight=0.5, order=LeftToRight()),
                    MixtureComponent(weight=0.5, order=Strided(streams=(2,), joint=False)),
                )
            ),
        ),
        (
            "mixture(1*random+2*mixture(1*l2r+3*groups:2,4))",
            Mixture(
                components=(
                    MixtureComponent(weight=1.0, order=RandomPermutation()),
                    MixtureComponent(
                        weight=2.0,
                        order=Mixture(
                            components=(
                                MixtureComponent(weight=1.0, order=LeftToRight()),
                                MixtureComponent(weight=3.0, order=Groups(sizes=(2, 4))),
                            )
                        ),
                    ),
                )
            ),
        ),
        (" l2r ", LeftToRight()),
    ],
)
def test_spec_names_its_order(spec: str, order: OrderPolicy) -> None:
    assert parse_spec(spec) == order


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("stride:2", "(got 'stride:2'): the nearest is strided:S[,S..]"),
        ("permuted:4", "the nearest is permuted_groups:s[,s..]"),
        ("", "an order must be one of l2r, progressive:m"),
        ("l2r:3", "the nearest is l2r"),
        ("progressive:3,4", "the nearest is progressive:m"),
        ("strided", "must be whole numbers >= 1 (got 'strided'): write strided:S[,S..]"),
        ("strided:2,x", "must be whole numbers >= 1 (got 'strided:2,x')"),
        ("strided:", "must be whole numbers >= 1 (got 'strided:')"),
        ("strided-ar:0", "(got 'strided-ar:0'): write strided-ar:S[,S..]"),
        ("groups:-4", "must be whole numbers >= 1 (got 'groups:-4')"),
        ("permuted_groups:2,0", "must be whole numbers >= 1 (got 'permuted_groups:2,0')"),
        ("progressive:0", "must be whole numbers >= 1 (got 'progressive:0')"),
        ("diffusion:0", "must be whole numbers >= 1 (got 'diffusion:0')"),
        ("strided-joint:2", "order strided-joint:2 is now called strided:2"),
        ("mixture(1*strided-joint:2,4)", "order strided-joint:2,4 is now called strided:2,4"),
        ("stages", "an order must be one of"),
        ("mixture(l2r)", "must be a weight > 0 times an order (got 'l2r'"),
        ("mixture(a*l2r)", "must be a weight > 0 times an order (got 'a*l2r'"),
        ("mixture(1*)", "must be a weight > 0 times an order (got '1*'"),
        ("mixture()", "must be a weight > 0 times an order (got ''"),
        ("mixture(0*l2r)", "must be a weight > 0 times an order (got '0*l2r'"),
        ("mixture(nan*l2r)", "must be a weight > 0 times an order (got 'nan*l2r'"),
        ("mixture(inf*l2r)", "must be a weight > 0 times an order (got 'inf*l2r'"),
        ("mixture(1*lr)", "(got 'lr'): the nearest is l2r"),
    ],
)
def test_wrong_specs_are_refused_with_the_right_syntax(spec: str, says: str) -> None:
    with pytest.raises(OrderError) as caught:
        parse_spec(spec)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_syntax_of_every_form_is_listed() -> None:
    assert set(SPEC_SYNTAX.values()) == {
        "l2r",
        "progressive:m",
        "strided:S[,S..]",
        "strided-ar:S[,S..]",
        "random",
        "groups:s[,s..]",
        "permuted_groups:s[,s..]",
        "diffusion:T",
        "mixture(w*ORDER+w*ORDER..)",
    }


@pytest.mark.parametrize(
    "spec", ["strided:" + "9" * 5000, "strided:٣", "mixture(1*" * 5000 + "l2r" + ")" * 5000]
)
def test_absurd_specs_are_refused(spec: str) -> None:
    with pytest.raises(OrderError):
        parse_spec(spec)
