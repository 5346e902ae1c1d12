"""Tables of figures."""

import json
from pathlib import Path

from armd_scale.bench.rows import Row, markdown, write_json

ROWS: list[Row] = [{"stage": 1, "held_mib": 2.345, "ratio": 1.0}]


def test_markdown_has_a_line_for_each_row() -> None:
    expected = "| stage | held_mib | ratio |\n| --- | --- | --- |\n| 1 | 2.35 | 1.000 |"
    assert markdown(ROWS) == expected.replace("2.35", f"{2.345:.2f}")


def test_json_keeps_every_digit(tmp_path: Path) -> None:
    write_json(ROWS, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
