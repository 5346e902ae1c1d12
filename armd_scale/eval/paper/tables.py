"""The paper's tables for one's own checkpoints, its published rows beside them.

Published figures are of Karami & Ghodsi (arXiv 2601.16971) and what they cite; all were trained on
OpenWebText and use GPT-2's vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from armd_scale.errors import ArmdError
from armd_scale.files import atomic_file

BENCHMARKS = {
    "LAMBADA": "lambada",
    "WikiText2": "wikitext",
    "PTB": "ptb",
    "WikiText103": "wikitext",
    "1BW": "lm1b",
}
"""Columns of the zero-shot table, and the convention by which each text is detokenised."""

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
"""Perplexity and entropy, where published; nobody reports the other columns."""

GENERATIVE_COLUMNS = (
    "perplexity",
    "entropy (bits)",
    "distinct-1",
    "distinct-2",
    "distinct-3",
    "self-BLEU",
)
"""Columns of the generative table; S is the number of streams that a row's texts were made in."""


@dataclass(frozen=True)
class Row:
    """One model's figures, by column; a column may be missing."""

    label: str
    figures: Mapping[str, float]
    published: bool = False


@dataclass(frozen=True)
class Table:
    """Figures of several models."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        """As a Markdown table; a dash where nothing is known."""
        lines = [
            f"**{self.title}**",
            "",
            f"| model | {' | '.join(self.columns)} |",
            f"|---|{'---|' * len(self.columns)}",
        ]
        for row in self.rows:
            cells = [
                _cell(row.figures[name]) if name in row.figures else "-" for name in self.columns
            ]
            label = f"{row.label} (published)" if row.published else row.label
            lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def draw(self, path: Path) -> None:
        """As a picture of bars, a panel a column; published models are grey.

        The file appears whole or not at all, in the format that its ending names.

        Raises:
            ArmdError: it cannot be written, or its ending names no format.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.6 * len(self.columns) + 1, 1 + 0.3 * len(self.rows)))
        panels = figure.subplots(1, len(self.columns), sharey=True, squeeze=False)[0]
        labels = [row.label for row in self.rows]
        colors = ["0.7" if row.published else "tab:blue" for row in self.rows]
        for panel, name in zip(panels, self.columns, strict=True):
            widths = [row.figures.get(name, 0.0) for row in self.rows]
            bars = panel.barh(labels, widths, color=colors)
            panel.bar_label(bars, [f"{width:.3g}" if width else "" for width in widths], size=7)
            panel.set_title(name, size=9)
            panel.margins(x=0.2)
        panels[0].invert_yaxis()
        figure.suptitle(f"{self.title}; published in grey", size=10)
        figure.tight_layout()
        try:
            with atomic_file(path) as partial:
                # matplotlib would take the format from the temporary name.
                figure.savefig(partial, format=path.suffix.removeprefix("."))
        except ValueError as error:
            raise ArmdError(
                f"the picture's format must be one that matplotlib knows (got {path}: {error}): "
                "name a file such as table.svg"
            ) from error


def zero_shot(ours: Sequence[Row]) -> Table:
    """Perplexity per token on texts that nobody trained on; columns are BENCHMARKS."""
    rows = [
        Row(label, dict(zip(BENCHMARKS, figures, strict=True)), published=True)
        for label, figures in _ZERO_SHOT.items()
    ]
    return Table("Zero-shot perplexity per token", tuple(BENCHMARKS), (*rows, *ours))


def generative(ours: Sequence[Row]) -> Table:
    """Perplexity by a judge, entropy in bits per token, and variety; columns are QUALITIES."""
    rows = [
        Row(label, dict(zip(GENERATIVE_COLUMNS, figures, strict=False)), published=True)
        for label, figures in _GENERATIVE.items()
    ]
    return Table("Generative perplexity and variety", GENERATIVE_COLUMNS, (*rows, *ours))


def ablation(title: str, ours: Sequence[Row]) -> Table:
    """Held-out perplexity by order of checkpoints that differ in one choice."""
    columns = tuple(dict.fromkeys(name for row in ours for name in row.figures))
    return Table(title, columns, tuple(ours))


def _cell(figure: float) -> str:
    """Two places, three of what is a share of 1."""
    return f"{figure:.2f}" if figure >= 1 else f"{figure:.3f}"
