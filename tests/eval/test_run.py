"""A request that cannot be met says so before any work is done; tests/tools has those that can."""

import re
from pathlib import Path

import pytest

from armd_scale.errors import run_command
from armd_scale.eval.run import Request, evaluate_checkpoint
from armd_scale.parallel.environment import read_environment
from tests.support.held_out import write_place


@pytest.fixture(scope="module")
def place(groups, tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("place"), groups)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"order": "stride:2"}, "an order must be one of .* the nearest is strided:S"),
        ({"order": "strided:0"}, "amounts of an order must be whole numbers of at least 1"),
        ({"checkpoint": "nothing"}, "nothing must be a checkpoint"),
        ({"data": "nothing"}, "nothing.bin does not exist"),
        ({"seq_length": 17}, "must fit the positions of the model, .* --seq-length 16 or less"),
        ({"json": Path("no/found.json")}, "--json must name a file in a folder that exists"),
        ({"dump": Path("no/dump")}, "--dump must name a file in a folder that exists"),
    ],
)
def test_bad_input_ends_in_one_sentence(place, monkeypatch, capsys, changes, sentence):
    monkeypatch.chdir(place)
    request = Request(**{"checkpoint": "run", "data": "valid", "order": "l2r", **changes})
    with pytest.raises(SystemExit, match=r"^2$"):
        run_command(lambda: evaluate_checkpoint(request, read_environment()) and None)
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(sentence, err), err
