"""Tables as Markdown and as pictures; published figures are marked."""

from pathlib import Path

import pytest

from armd_scale.errors import ArmdError
from armd_scale.eval.paper.rows import benchmark_texts
from armd_scale.eval.paper.tables import Row, ablation, generative, zero_shot


def test_published_rows_stand_beside_ours():
    lines = zero_shot([Row("mine", {"PTB": 99.5})]).markdown().splitlines()
    assert lines[2] == "| model | LAMBADA | WikiText2 | PTB | WikiText103 | 1BW |"
    assert "| ARMD 400K (published) | 45.35 | 35.64 | 123.43 | 35.15 | 52.94 |" in lines
    assert lines[-1] == "| mine | - | - | 99.50 | - | - |"
    assert sum("(published)" in line for line in lines) == 6


def test_generative_names_its_unit():
    row = Row("mine, S = 1", {"perplexity": 40.0, "entropy (bits)": 7.5, "distinct-1": 0.0625})
    lines = generative([row]).markdown().splitlines()
    assert lines[2] == (
        "| model | perplexity | entropy (bits) | distinct-1 | distinct-2 | distinct-3 | self-BLEU |"
    )
    assert "| ARMD rho 32, 80K, S = 4 (published) | 39.40 | 8.00 | - | - | - | - |" in lines
    assert "| AR (about) (published) | 36.00 | - | - | - | - | - |" in lines
    assert lines[-1] == "| mine, S = 1 | 40.00 | 7.50 | 0.062 | - | - | - |"
    assert sum("(published)" in line for line in lines) == 9


def test_picture(tmp_path):
    rows = [Row("a", {"l2r": 3.0, "random": 4.0}), Row("b", {"l2r": 2.5})]
    table = ablation("Title", rows)
    table.draw(tmp_path / "t.svg")
    assert "<svg" in (tmp_path / "t.svg").read_text()
    with pytest.raises(ArmdError, match=r"the picture's format must be .*t\.what: "):
        table.draw(tmp_path / "t.what")
    assert [path.name for path in tmp_path.iterdir()] == ["t.svg"]


def test_texts_are_named_by_their_columns():
    assert benchmark_texts(["PTB=a=b"]) == {"PTB": Path("a=b")}
    with pytest.raises(ArmdError, match=r"NAME one of LAMBADA, .* got 'ptb=x'"):
        benchmark_texts(["ptb=x"])
