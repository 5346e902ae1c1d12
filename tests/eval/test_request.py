"""Which combinations of evaluation options are refused, and what the message says."""

from pathlib import Path

import pytest

from armd_scale.errors import ArmdError
from armd_scale.eval.request import EvalRequest, check_options
from armd_scale.order.spec import parse_spec

LAMBADA = {"data": None, "task": ("lambada", Path("text"))}
INFILL = {"data": None, "task": ("infill", Path("stories"))}
DUMP = {"dump": Path("dump")}


def check(changes):
    request = EvalRequest(**{"checkpoint": "run", "data": "valid", "order": "l2r", **changes})
    check_options(request, parse_spec(request.order))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride": 3},
        {"stride": 8, "seq_length": 8, "order": "random"},
        {**DUMP, "order": "random"},
        {"data": None, "text": Path("text"), "detokenizer": "ptb"},
        LAMBADA,
        {**INFILL, "order": "random", "seed": 3, "temperature": 0.0},
    ],
)
def test_valid_combinations(changes):
    check(changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": None}, "exactly one of --data, --text and --task must be given"),
        ({"text": Path("text")}, "exactly one of --data, --text and --task must be given"),
        ({"task": LAMBADA["task"]}, "exactly one of --data, --text and --task must be given"),
        ({"stride": 3, "order": "random"}, "--stride needs --order l2r"),
        ({"stride": 9, "seq_length": 8}, "--stride must be at most --seq-length"),
        ({**DUMP, "orders_per_sample": 2}, "--dump stores one order per window"),
        ({"detokenizer": "ptb"}, "--detokenizer needs --text"),
        ({"temperature": 0.0}, "--temperature needs --task infill"),
        ({"data": None, "task": ("piqa", Path("x"))}, "--task must be lambada FILE or infill F"),
        ({**LAMBADA, "orders_per_sample": 2}, "--task cannot be combined with --dump, --stride or"),
        ({**LAMBADA, "stride": 16, "seq_length": 16}, "--task cannot be combined with --dump, --"),
        ({**LAMBADA, **DUMP}, "--task cannot be combined with --dump, --stride or --orders-per-"),
        ({**INFILL, "orders_per_sample": 2}, "--task cannot be combined with --dump, --stride or"),
        ({**INFILL, "detokenizer": "ptb"}, "--detokenizer needs --text"),
        ({**LAMBADA, "order": "random"}, "--task lambada needs --order l2r"),
        ({**LAMBADA, "seed": 3}, "--task lambada draws nothing at random, so it cannot be .* --se"),
        ({**LAMBADA, "temperature": 0.0}, "--task lambada generates no text, .* --temperature"),
    ],
)
def test_invalid_combinations_are_refused(changes, sentence):
    with pytest.raises(ArmdError, match=rf"^{sentence}.*: change the options, --help has an ex"):
        check(changes)
