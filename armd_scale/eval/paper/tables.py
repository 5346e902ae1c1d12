"""The paper's tables: published rows, and their layout as Markdown and as a plot.

Published figures are from Karami & Ghodsi (arXiv 2601.16971) and the work it cites. All those
models were trained on OpenWebText with GPT-2's vocabulary.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from armd_scale.errors import ArmdError
from armd_scale.files import atomic_write_bytes

BENCHMARKS = {
    "LAMBADA": "lambada",
    "WikiText2": "wikitext",
    "PTB": "ptb",
    "WikiText103": "wikitext",
    "1BW": "lm1b",
}
"""Columns of the zero-shot table, with the detokenizer of each text."""

_ZERO_SHOT = {
    "GPT-2 S": (45.04, 42.43, 138.43, 41.60, 75.20),
    "SEDD": (50.92, 41.84, 114.24, 40.62, 79.29),
    "RADD": (51.70, 39.98, 107.85, 37.98, 72.99),
    "ARMD 180K": (44.66, 36.25, 130.31, 35.66, 53.18),
    "ARMD 400K": (45.35, 35.64, 123.43, 35.15, 52.94),
    "ARMD M 300K": (39.08, 26.06, 97.75, 25.55, 43.91),
}
_GENERATIVE = {
    "ARMD rho 32, 80K, S = 1": (36.5, 7.9),
    "ARMD rho 32, 80K, S = 2": (37.8, 8.0),
    "ARMD rho 32, 80K, S = 4": (39.4, 8.0),
    "ARMD rho 32, 10K, S = 1": (38.7,),
    "ARMD rho 32, 10K, S = 2": (43.2,),
    "ARMD rho 32, 10K, S = 4": (47.8,),
    "AR (about)": (36.0,),
    "SEDD (about)": (106.0,),
    "MDLM (about)": (103.0,),
}
"""Perplexity and, where published, entropy. No paper reports the other columns."""

GENERATIVE_COLUMNS = (
    "perplexity",
    "entropy (bits)",
    "distinct-1",
    "distinct-2",
    "distinct-3",
    "self-BLEU",
)
"""Columns of the generative table; S in a row's label is the number of streams."""


@dataclass(frozen=True)
class Row:
    """The figures of one model by column; columns may be missing."""

    label: str
    figures: Mapping[str, float]
    is_published: bool = False


@dataclass(frozen=True)
class Table:
    """A table with one row per model."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        """Format as a Markdown table, with a dash for missing figures."""
        lines = [
            f"**{self.title}**",
            "",
            f"| model | {' | '.join(self.columns)} |",
            f"|---|{'---|' * len(self.columns)}",
        ]
        for row in self.rows:
            cells = [
                _format_figure(row.figures[name]) if name in row.figures else "-"
                for name in self.columns
            ]
            label = f"{row.label} (published)" if row.is_published else row.label
            lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def plot(self, path: Path) -> None:
        """Draw bars, one panel per column, with published models in gray.

        Args:
            path: the file, which appears complete or not at all; its suffix names the format, see
                `require_image_suffix`.

        Raises:
            ArmdError: the file cannot be written.
        """
        # matplotlib takes a second to import, and the Markdown table does not need it. Without
        # pyplot there is no global state and no display.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.6 * len(self.columns) + 1, 1 + 0.3 * len(self.rows)))
        panels = figure.subplots(1, len(self.columns), sharey=True, squeeze=False)[0]
        labels = [row.label for row in self.rows]
        colors = ["0.7" if row.is_published else "tab:blue" for row in self.rows]
        for panel, name in zip(panels, self.columns, strict=True):
            widths = [row.figures.get(name, 0.0) for row in self.rows]
            bars = panel.barh(labels, widths, color=colors)
            panel.bar_label(bars, [f"{width:.3g}" if width else "" for width in widths], size=7)
            panel.set_title(name, size=9)
            panel.margins(x=0.2)
        panels[0].invert_yaxis()  # bars start at the bottom, tables at the top
        figure.suptitle(f"{self.title}; published in gray", size=10)
        figure.tight_layout()
        # Drawn in memory, so that a failing disk leaves no half-written file.
        image = io.BytesIO()
        figure.savefig(image, format=path.suffix.removeprefix("."))
        atomic_write_bytes(path, image.getvalue())


def require_image_suffix(path: Path | None, option: str) -> None:
    """Check, before any long work, that a file's suffix names an image format.

    Args:
        path: the output file; None if the user did not ask for it.
        option: command-line option that names the file, for the message.

    Raises:
        ArmdError: matplotlib cannot write such a file.
    """
    if path is None:
        return
    from matplotlib.figure import Figure

    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ArmdError(
            f"{option} must end in one of {', '.join(f'.{name}' for name in sorted(formats))} (got "
            f"{path}): name a file such as table.svg"
        )


def zero_shot_table(rows: Sequence[Row]) -> Table:
    """Perplexity per token on benchmark texts without training on them; columns are BENCHMARKS."""
    published = [
        Row(label, dict(zip(BENCHMARKS, figures, strict=True)), is_published=True)
        for label, figures in _ZERO_SHOT.items()
    ]
    return Table("Zero-shot perplexity per token", tuple(BENCHMARKS), (*published, *rows))


def generative_table(rows: Sequence[Row]) -> Table:
    """Generative perplexity and diversity; columns are GENERATIVE_COLUMNS."""
    published = [
        # A row with fewer figures leaves its last columns empty.
        Row(label, dict(zip(GENERATIVE_COLUMNS, figures, strict=False)), is_published=True)
        for label, figures in _GENERATIVE.items()
    ]
    return Table("Generative perplexity and diversity", GENERATIVE_COLUMNS, (*published, *rows))


def ablation_table(title: str, rows: Sequence[Row]) -> Table:
    """Held-out perplexity by order, for checkpoints that differ in one setting."""
    # dict.fromkeys removes duplicates and keeps the order, which a set does not.
    columns = tuple(dict.fromkeys(name for row in rows for name in row.figures))
    return Table(title, columns, tuple(rows))


def _format_figure(figure: float) -> str:
    """Two decimals, or three for fractions below 1."""
    return f"{figure:.2f}" if figure >= 1 else f"{figure:.3f}"
