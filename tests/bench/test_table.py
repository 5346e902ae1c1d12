"""Tables of figures."""

import json
from pathlib import Path

import pytest

from armd_scale.bench.table import Row, markdown, require_writable, write_json
from armd_scale.errors import ArmdError

ROWS: list[Row] = [{"stage": 1, "held_mib": 2.345, "ratio": 1.0}]


def test_markdown_has_a_line_for_each_row() -> None:
    expected = "| stage | held_mib | ratio |\n| --- | --- | --- |\n| 1 | 2.35 | 1.000 |"
    assert markdown(ROWS) == expected.replace("2.35", f"{2.345:.2f}")


def test_json_keeps_every_digit(tmp_path: Path) -> None:
    write_json(ROWS, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_a_place_for_figures_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "rows.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArmdError, match=r"rows\.json cannot \(No such file.*make its folder first"):
        require_writable(tmp_path / "no" / "rows.json")
    with pytest.raises(ArmdError, match=r"cannot \(Is a directory\)"):
        write_json(ROWS, tmp_path)
