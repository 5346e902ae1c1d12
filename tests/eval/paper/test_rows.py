"""Arguments of the paper's tables; tests/tools/test_paper_tables.py checks the measured rows."""

from pathlib import Path

import pytest

from armd_scale.errors import ArmdError
from armd_scale.eval.paper.rows import parse_benchmark_texts


def test_benchmark_texts_are_named_by_their_columns():
    assert parse_benchmark_texts(["PTB=a=b"]) == {"PTB": Path("a=b")}
    with pytest.raises(ArmdError, match=r"NAME one of LAMBADA, .* \(got 'ptb=x'\)"):
        parse_benchmark_texts(["ptb=x"])
