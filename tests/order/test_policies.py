"""SPECs: every order has one, and reading it gives the order back."""

import pytest
from hypothesis import given

from armd_scale.errors import OrderError
from armd_scale.order.policies import (
    Diffusion,
    Groups,
    LeftToRight,
    Mixture,
    Order,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
    parse_spec,
)
from tests.support.strategies import orders


@given(order=orders)
def test_spec_reads_back(order: Order) -> None:
    assert parse_spec(str(order)) == order


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        ("l2r", LeftToRight()),
        ("progressive:32", Progressive(32)),
        ("strided:4", Strided((4,), joint=False)),
        ("strided-joint:1,2,4", Strided((1, 2, 4), joint=True)),
        ("random", RandomPermutation()),
        ("groups:4", Groups((4,))),
        ("permuted_groups:4,8", PermutedGroups((4, 8))),
        ("diffusion:64", Diffusion(64)),
        (
            "mixture(0.5*l2r+0.5*strided:2)",
            Mixture((0.5, 0.5), (LeftToRight(), Strided((2,), joint=False))),
        ),
        (
            "mixture(1*random+2*mixture(1*l2r+3*groups:2,4))",
            Mixture(
                (1.0, 2.0),
                (RandomPermutation(), Mixture((1.0, 3.0), (LeftToRight(), Groups((2, 4))))),
            ),
        ),
        (" l2r ", LeftToRight()),
    ],
)
def test_written_specs(spec: str, order: Order) -> None:
    assert parse_spec(spec) == order


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("stride:2", "got 'stride:2': the nearest is strided:S[,S..]"),
        ("permuted:4", "the nearest is permuted_groups:s[,s..]"),
        ("", "an order must be one of l2r, progressive:m"),
        ("l2r:3", "the nearest is l2r"),
        ("progressive:3,4", "the nearest is progressive:m"),
        ("strided", "needs whole numbers of at least 1, got 'strided': write strided:S[,S..]"),
        ("strided:2,x", "needs whole numbers of at least 1, got 'strided:2,x'"),
        ("groups:-4", "needs whole numbers of at least 1, got 'groups:-4'"),
        ("diffusion:0", "must be whole numbers of at least 1, got 'diffusion:0'"),
        ("mixture(l2r)", "must be a weight times an order, got 'l2r'"),
        ("mixture(a*l2r)", "must be a weight times an order, got 'a*l2r'"),
        ("mixture()", "must be a weight times an order, got ''"),
        ("mixture(0*l2r)", "must have one weight above 0 for each order, got mixture(0*l2r)"),
        ("mixture(nan*l2r)", "must have one weight above 0"),
        ("mixture(1*lr)", "got 'lr': the nearest is l2r"),
    ],
)
def test_wrong_specs_say_what_is_right(spec: str, says: str) -> None:
    with pytest.raises(OrderError) as caught:
        parse_spec(spec)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
