"""Tables of figures."""

from armd_scale.bench.table import Row, markdown

ROWS: list[Row] = [{"stage": 1, "weights_mib": 2.345, "ratio": 1.0}]


def test_markdown_has_one_line_per_row() -> None:
    expected = "| stage | weights_mib | ratio |\n| --- | --- | --- |\n| 1 | 2.35 | 1.000 |"
    assert markdown(ROWS) == expected.replace("2.35", f"{2.345:.2f}")
