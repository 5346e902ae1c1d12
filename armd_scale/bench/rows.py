"""What a benchmark returns: rows of named figures, printed as Markdown and written as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str | int | float]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; numbers that are no counts with two decimals, ratios with three."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(name, row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """The rows as a list of objects; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(rows, indent=2) + "\n")
    part.replace(path)


def _cell(name: str, value: str | int | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if name.endswith("ratio") else f"{value:.2f}"
