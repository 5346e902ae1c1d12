"""tools/bench.py as a command."""

import json
from pathlib import Path

from tests.support.runs import run


def test_memory_prints_a_table_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    done = run("tools/bench.py", "memory", "--ranks", 1, "--json", file, folder=tmp_path)
    assert done.status == 0, done.errors
    rows = json.loads(file.read_text())
    assert [row["zero_stage"] for row in rows] == [0, 1, 2, 3]
    lines = done.output.splitlines()
    assert lines[0] == f"| {' | '.join(rows[0])} |"
    assert len(lines) == 6


def test_ranks_are_counted(tmp_path: Path) -> None:
    done = run("tools/bench.py", "memory", "--ranks", "0", folder=tmp_path)
    assert done.status == 2
    assert "argument --ranks: must be a whole number of at least 1, got '0'" in done.errors
