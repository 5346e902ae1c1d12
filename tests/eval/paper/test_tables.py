"""Tables as Markdown and as plots, with published figures marked."""

from pathlib import Path

import pytest

from armd_scale.errors import ArmdError
from armd_scale.eval.paper.tables import (
    Row,
    ablation_table,
    generative_table,
    require_image_suffix,
    zero_shot_table,
)


def test_the_zero_shot_table_has_published_and_measured_rows():
    lines = zero_shot_table([Row("model", {"PTB": 99.5})]).markdown().splitlines()
    assert lines[2] == "| model | LAMBADA | WikiText2 | PTB | WikiText103 | 1BW |"
    assert "| ARMD 400K (published) | 45.35 | 35.64 | 123.43 | 35.15 | 52.94 |" in lines
    assert lines[-1] == "| model | - | - | 99.50 | - | - |"
    assert sum("(published)" in line for line in lines) == 6


def test_the_generative_table_names_the_unit_of_the_entropy():
    row = Row("model, S = 1", {"perplexity": 40.0, "entropy (bits)": 7.5, "distinct-1": 0.0625})
    lines = generative_table([row]).markdown().splitlines()
    assert lines[2] == (
        "| model | perplexity | entropy (bits) | distinct-1 | distinct-2 | distinct-3 | self-BLEU |"
    )
    assert "| ARMD rho 32, 80K, S = 4 (published) | 39.40 | 8.00 | - | - | - | - |" in lines
    assert "| AR (about) (published) | 36.00 | - | - | - | - | - |" in lines
    assert lines[-1] == "| model, S = 1 | 40.00 | 7.50 | 0.062 | - | - | - |"
    assert sum("(published)" in line for line in lines) == 9


def test_a_table_is_drawn_in_the_format_of_the_suffix(tmp_path):
    rows = [Row("a", {"l2r": 3.0, "random": 4.0}), Row("b", {"l2r": 2.5})]
    ablation_table("Title", rows).plot(tmp_path / "t.svg")
    assert "<svg" in (tmp_path / "t.svg").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["t.svg"]


@pytest.mark.parametrize("name", ["t.what", "t"])
def test_a_suffix_that_is_not_an_image_format_is_refused(name):
    require_image_suffix(None, "--plot")
    require_image_suffix(Path("t.png"), "--plot")
    with pytest.raises(ArmdError, match=r"^--plot must end in one of .*\.pdf.*\.svg.* \(got t"):
        require_image_suffix(Path(name), "--plot")
