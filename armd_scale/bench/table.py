"""What a benchmark returns: rows of named figures, printed as Markdown and written as JSON."""

from collections.abc import Sequence

Row = dict[str, str | int | float]
# Columns that hold shares of something, which two decimals would blur.
SHARES = ("ratio", "share", "mfu", "residual")


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; numbers that are no counts with two decimals, shares with three."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(name, row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(name: str, value: str | int | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if name.endswith(SHARES) else f"{value:.2f}"
