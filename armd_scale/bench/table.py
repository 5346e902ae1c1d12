"""The result of a benchmark: rows of named figures, printed as a Markdown table."""

from collections.abc import Sequence

Row = dict[str, str | int | float]
# Columns whose names end so hold fractions around or below 1, which need three decimals.
FRACTIONS = ("ratio", "share", "mfu", "residual")


def markdown(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table: floats with two decimals, ratios and shares with three."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(name, row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(name: str, value: str | int | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if name.endswith(FRACTIONS) else f"{value:.2f}"
