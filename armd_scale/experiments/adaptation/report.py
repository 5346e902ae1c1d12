"""Report of tools/adapt_experiment.sh: learning curves, findings, a table and a plot.

Three models learn to generate several streams at once and are compared by the number of training
tokens they need: a converted Llama with the anchor query, the same Llama with a learned query
(which does not preserve its function), and a model trained on strided orders from scratch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from armd_scale.config.derived import tokens_per_step
from armd_scale.config.load import load_recipe
from armd_scale.errors import TrainingError
from armd_scale.experiments.adaptation.train_llama import score_llama

ORDERS = ("l2r", "strided-ar:2", "strided-ar:4", "random")
RUNS = {
    "anchor": "converted, anchor query",
    "learned": "converted, learned query",
    "scratch": "from scratch",
}
# The colors of Okabe and Ito, safe for color blindness, and a marker for each.
STYLES = {"anchor": ("#0072B2", "o"), "learned": ("#D55E00", "s"), "scratch": ("#009E73", "^")}
TOKEN_FRACTION = 0.1
"""Fine-tuning tokens at which the anchor run is judged, as a fraction of the Llama's own."""


@dataclass(frozen=True)
class Point:
    """Validation likelihood after a number of training tokens."""

    tokens: int
    nats: dict[str, float]
    """Nats per token, by order."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The results of the experiment; nats are per token, that is, per byte."""

    parity_nats: float
    """Left to right, before any training: converted model minus Llama. At most 1e-5 in size."""
    level_nats: float
    """strided-ar:4 of the anchor run after `level_tokens`."""
    level_tokens: int
    """Tokens of the last evaluation within TOKEN_FRACTION of the Llama's training tokens."""
    learned_tokens: float | None
    """Tokens to reach that level with a learned query; None if it is never reached."""
    scratch_tokens: float | None
    """Tokens to reach that level from scratch; None if it is never reached."""
    worst_l2r_nats: float
    """Largest increase of the anchor run left to right over the Llama, at any evaluation."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Curves and findings of the experiment."""

    llama_tokens: int
    llama_l2r_nats: float
    curves: dict[str, list[Point]]
    """By run; the first point of a converted model is at 0 tokens."""
    findings: Findings


def collect(folder: Path) -> Results:
    """Read the folder of the experiment after all of its runs have finished.

    Raises:
        TrainingError: a file of one of the phases is missing.
    """
    llama = json.loads(_read(folder / "llama" / "training.json"))
    curves = {name: _curve(folder, name) for name in RUNS}
    recipe = load_recipe(folder / "anchor" / "recipe.yaml", expand_paths=False)
    nats = score_llama(folder / "llama", recipe)
    findings = compute_findings(curves, llama_tokens=llama["tokens"], llama_nats=nats)
    return Results(
        llama_tokens=llama["tokens"], llama_l2r_nats=nats, curves=curves, findings=findings
    )


def compute_findings(
    curves: dict[str, list[Point]], *, llama_tokens: int, llama_nats: float
) -> Findings:
    """Compute the findings from the curves.

    Args:
        curves: points of each run, by tokens.
        llama_tokens: training tokens of the Llama.
        llama_nats: its validation nats per byte, left to right.
    """
    anchor = curves["anchor"]
    # Points are in order of tokens, and the first one is at 0 tokens, so there is a last one.
    reached = [point for point in anchor if point.tokens <= TOKEN_FRACTION * llama_tokens][-1]
    level = reached.nats["strided-ar:4"]
    return Findings(
        parity_nats=anchor[0].nats["l2r"] - llama_nats,
        level_nats=level,
        level_tokens=reached.tokens,
        learned_tokens=tokens_to(curves["learned"], "strided-ar:4", level),
        scratch_tokens=tokens_to(curves["scratch"], "strided-ar:4", level),
        worst_l2r_nats=max(point.nats["l2r"] for point in anchor) - llama_nats,
    )


def tokens_to(curve: list[Point], order: str, level: float) -> float | None:
    """Return the tokens at which a curve first falls to a level; None if it never does.

    Interpolates linearly between the two evaluations around it.
    """
    previous = None
    for point in curve:
        if point.nats[order] <= level:
            if previous is None:
                return float(point.tokens)
            # Not 0: the previous point is above the level, and this one is not.
            fall = previous.nats[order] - point.nats[order]
            fraction = (previous.nats[order] - level) / fall
            return previous.tokens + fraction * (point.tokens - previous.tokens)
        previous = point
    return None


def table(results: Results) -> str:
    """Format findings and curves in Markdown."""
    findings = results.findings
    fraction = findings.level_tokens / results.llama_tokens
    lines = [
        f"* converted minus Llama, left to right, untrained: {findings.parity_nats:.1e} nats",
        f"* anchor, strided-ar:4 after {findings.level_tokens:,} tokens "
        f"({fraction:.0%} of the Llama's): {findings.level_nats:.3f} nats",
        f"* the same level, learned query: {_multiple(results, 'learned')}",
        f"* the same level, from scratch: {_multiple(results, 'scratch')}",
        f"* anchor, largest increase left to right: {findings.worst_l2r_nats:.3f} nats",
        "",
        f"| nats per byte | tokens | {' | '.join(ORDERS)} |",
        "|---" * (2 + len(ORDERS)) + "|",
        f"| Llama | {results.llama_tokens:,} | {results.llama_l2r_nats:.3f} | | | |",
    ]
    for name, curve in results.curves.items():
        for point in curve:
            nats = " | ".join(f"{point.nats[order]:.3f}" for order in ORDERS)
            lines.append(f"| {RUNS[name]} | {point.tokens:,} | {nats} |")
    return "\n".join(lines) + "\n"


def _multiple(results: Results, name: str) -> str:
    tokens = getattr(results.findings, f"{name}_tokens")
    anchor_tokens = results.findings.level_tokens
    if tokens is None:
        last = results.curves[name][-1].tokens
        return f"not within {last:,} tokens, {last / anchor_tokens:.1f} times as many"
    return f"{tokens:,.0f} tokens, {tokens / anchor_tokens:.1f} times as many"


def write(results: Results, folder: Path) -> None:
    """Write results.json, results.md and adaptation.svg."""
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    (folder / "results.md").write_text(table(results))
    plot(results, folder / "adaptation.svg")


def plot(results: Results, path: Path) -> None:
    """Plot likelihood over training tokens: one panel for strided-ar:4, one for left to right."""
    import matplotlib

    # Text stays text and ids are hashed with a fixed salt, so that the file is small and repeats.
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "armd", "font.size": 11})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    judged = TOKEN_FRACTION * results.llama_tokens
    start = min(p.tokens for curve in results.curves.values() for p in curve if p.tokens) / 2
    for panel, order, title in zip(
        panels, ("strided-ar:4", "l2r"), ("four streams at once (strided-ar:4)", "left to right"),
        strict=True,
    ):  # fmt: skip
        for name, curve in results.curves.items():
            color, marker = STYLES[name]
            # The axis is logarithmic, so the point before any training goes to its left edge.
            x = [point.tokens or start for point in curve]
            y = [point.nats[order] for point in curve]
            panel.plot(x, y, color=color, marker=marker, markersize=4, label=RUNS[name])
        panel.axhline(results.llama_l2r_nats, color="black", linestyle="--", linewidth=1,
                      label="Llama, left to right")  # fmt: skip
        panel.axvline(judged, color="grey", linestyle=":", linewidth=1)
        panel.set(xscale="log", title=title, xlabel="training tokens (left edge: none)")
        panel.grid(alpha=0.25)
    lowest = min(point.nats["l2r"] for curve in results.curves.values() for point in curve)
    # Higher points, such as a learned query before training, are cut off: they would flatten the
    # part of the curves that differs.
    panels[0].set(ylabel="validation nats per byte", ylim=(lowest - 0.08, lowest + 1.2))
    panels[0].annotate("10 % of the Llama's ", (judged, lowest - 0.05),
                       color="dimgrey", fontsize=9, ha="right")  # fmt: skip
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _curve(folder: Path, name: str) -> list[Point]:
    """Return the evaluations of a run, after those of the model that it started from."""
    per_step = tokens_per_step(load_recipe(folder / name / "recipe.yaml", expand_paths=False))
    # Steps times tokens per step, because lines of evaluations do not have their tokens.
    by_step: dict[int, dict[str, float]] = {}
    if name != "scratch":
        files = {order: folder / "start" / f"{name}-{order}.json" for order in ORDERS}
        by_step[0] = {o: json.loads(_read(f))["nll_nats_per_token"] for o, f in files.items()}
    for line in map(json.loads, _read(folder / name / "metrics.jsonl").splitlines()):
        if "eval_order" in line:
            nats = by_step.setdefault(line["step"], {})
            nats[line["eval_order"]] = line["nll_nats_per_token"]
    return [Point(step * per_step, nats) for step, nats in sorted(by_step.items())]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{path} must exist before the report ({error.strerror}): run "
            "tools/adapt_experiment.sh to its end"
        ) from error
