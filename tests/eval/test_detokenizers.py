"""Each detokenizer on lines in the form in which its benchmark distributes them."""

import pytest

from armd_scale.errors import ArmdError
from armd_scale.eval.detokenizers import get_detokenizer

LINES = {
    "wikitext": [
        (
            " = Robert <unk> = \n \n It had 1 @,@ 500 men ( two ships ) "
            'and a self @-@ made " crew " . \n',
            ' = Robert <unk> =\n\nIt had 1,500 men (two ships) and a self-made "crew".\n',
        ),
        (
            "\n = = Early life = = \n the boy 's 3 @.@ 5 , and",
            "\n== Early life ==\nthe boy's 3.5, and",
        ),
    ],
    "ptb": [
        (
            " mr. <unk> is chairman of n.v. \n rivals do n't pay $ N N or 's \n N N N years ",
            " mr. ? is chairman of n.v.\nrivals don't pay $1 1 or's\nN 1 1 years ",
        ),
        ("the banks ' notes", "the banks' notes"),
        ("either\\/or", "either/or"),
    ],
    "lm1b": [
        (
            'He said , " It \'s $ 5 ( or less ) . " Why ? \nSee http : / / a.b .',
            'He said, "It\'s $5 (or less) ." Why? \nSee http://a.b .',
        ),
        ("This is it .\nReally ?", "This is it.\nReally?"),
    ],
    "lambada": [(" “ why ? ” he asked ", '\n" why ? " he asked')],
    "none": [(" a , b ", " a , b ")],
}


@pytest.mark.parametrize(
    ("name", "distributed", "expected"),
    [(name, *pair) for name, pairs in LINES.items() for pair in pairs],
)
def test_text_is_restored(name, distributed, expected):
    assert get_detokenizer(name)(distributed) == expected


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ArmdError, match=r"one of none, wikitext, ptb, lambada, lm1b \(got 'wiki'\)"
    ):
        get_detokenizer("wiki")
