"""What tools/adapt_experiment.sh found: the curves of its runs, its claims, a table, a picture.

Three models learn to write several streams at once, and are compared by the tokens it takes them:
a converted Llama whose query rows start from the anchor, the same Llama with a learned query (which
does not keep its function), and a model that has read strided orders from its first step.
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
# Okabe and Ito's colours, told apart by every kind of sight, and a shape for each.
STYLES = {"anchor": ("#0072B2", "o"), "learned": ("#D55E00", "s"), "scratch": ("#009E73", "^")}
SHARE = 0.1  # of the parent's tokens


@dataclass(frozen=True)
class Point:
    """Held-out likelihood after some training tokens."""

    tokens: int
    nats: dict[str, float]
    """Nats per token, by order."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the experiment is for; nats are per token, a byte."""

    parity_nats: float
    """Left to right, before any training: converted less parent. At most 1e-5 in size."""
    level_nats: float
    """strided-ar:4 of the anchor after `level_tokens`."""
    level_tokens: int
    """Tokens of the last evaluation within a tenth of what the parent was trained on."""
    learned_tokens: float | None
    """Tokens to that level with a learned query; None where it is never reached."""
    scratch_tokens: float | None
    """Tokens to that level from scratch."""
    worst_l2r_nats: float
    """Largest loss of the anchor left to right, against the parent, at any evaluation."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was found."""

    parent_tokens: int
    parent_l2r_nats: float
    curves: dict[str, list[Point]]
    """By run; the first point of a converted model is at 0 tokens."""
    claims: Findings


def collect(folder: Path) -> Results:
    """Reads the folder of the experiment, all of whose runs have ended.

    Raises:
        TrainingError: a phase has left nothing there.
    """
    parent = json.loads(_read(folder / "llama" / "training.json"))
    curves = {name: _curve(folder, name) for name in RUNS}
    recipe = load_recipe(folder / "anchor" / "recipe.yaml")
    nats = score_llama(folder / "llama", recipe)
    claims = compute_findings(curves, parent_tokens=parent["tokens"], parent_nats=nats)
    return Results(
        parent_tokens=parent["tokens"], parent_l2r_nats=nats, curves=curves, claims=claims
    )


def compute_findings(
    curves: dict[str, list[Point]], *, parent_tokens: int, parent_nats: float
) -> Findings:
    """The claims that follow from the curves, whether they come out as hoped or not."""
    anchor = curves["anchor"]
    reached = [point for point in anchor if point.tokens <= SHARE * parent_tokens][-1]
    level = reached.nats["strided-ar:4"]
    return Findings(
        parity_nats=anchor[0].nats["l2r"] - parent_nats,
        level_nats=level,
        level_tokens=reached.tokens,
        learned_tokens=tokens_to(curves["learned"], "strided-ar:4", level),
        scratch_tokens=tokens_to(curves["scratch"], "strided-ar:4", level),
        worst_l2r_nats=max(point.nats["l2r"] for point in anchor) - parent_nats,
    )


def tokens_to(curve: list[Point], order: str, level: float) -> float | None:
    """Where a curve first falls to a level, on the line between two evaluations; None: nowhere."""
    before = None
    for point in curve:
        if point.nats[order] <= level:
            if before is None:
                return float(point.tokens)
            fall = before.nats[order] - point.nats[order]
            share = (before.nats[order] - level) / fall
            return before.tokens + share * (point.tokens - before.tokens)
        before = point
    return None


def table(results: Results) -> str:
    """Claims and curves in Markdown."""
    claims, share = results.claims, results.claims.level_tokens / results.parent_tokens
    lines = [
        f"* converted less parent, left to right, untrained: {claims.parity_nats:.1e} nats",
        f"* anchor, strided-ar:4 after {claims.level_tokens:,} tokens ({share:.0%} of the "
        f"parent's): {claims.level_nats:.3f} nats",
        f"* the same level, learned query: {_multiple(results, 'learned')}",
        f"* the same level, from scratch: {_multiple(results, 'scratch')}",
        f"* anchor, worst loss left to right on the way: {claims.worst_l2r_nats:.3f} nats",
        "",
        f"| nats per byte | tokens | {' | '.join(ORDERS)} |",
        "|---" * (2 + len(ORDERS)) + "|",
        f"| parent (Llama) | {results.parent_tokens:,} | {results.parent_l2r_nats:.3f} | | | |",
    ]
    for name, curve in results.curves.items():
        for point in curve:
            nats = " | ".join(f"{point.nats[order]:.3f}" for order in ORDERS)
            lines.append(f"| {RUNS[name]} | {point.tokens:,} | {nats} |")
    return "\n".join(lines) + "\n"


def _multiple(results: Results, name: str) -> str:
    tokens = getattr(results.claims, f"{name}_tokens")
    own = results.claims.level_tokens
    if tokens is None:
        last = results.curves[name][-1].tokens
        return f"not within {last:,} tokens, {last / own:.1f} times as many"
    return f"{tokens:,.0f} tokens, {tokens / own:.1f} times as many"


def write(results: Results, folder: Path) -> None:
    """Writes results.json, results.md and adaptation.svg."""
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    (folder / "results.md").write_text(table(results))
    draw(results, folder / "adaptation.svg")


def draw(results: Results, path: Path) -> None:
    """Likelihood over tokens spent, one panel for four streams and one for left to right."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "armd", "font.size": 11})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    start = min(p.tokens for curve in results.curves.values() for p in curve if p.tokens) / 2
    for panel, order, title in zip(
        panels, ("strided-ar:4", "l2r"), ("four streams at once (strided-ar:4)", "left to right"),
        strict=True,
    ):  # fmt: skip
        for name, curve in results.curves.items():
            colour, marker = STYLES[name]
            # A logarithm has no zero: what holds before training stands at the left edge.
            x = [point.tokens or start for point in curve]
            y = [point.nats[order] for point in curve]
            panel.plot(x, y, color=colour, marker=marker, markersize=4, label=RUNS[name])
        panel.axhline(results.parent_l2r_nats, color="black", linestyle="--", linewidth=1,
                      label="parent, left to right")  # fmt: skip
        panel.axvline(SHARE * results.parent_tokens, color="grey", linestyle=":", linewidth=1)
        panel.set(xscale="log", title=title, xlabel="training tokens (left edge: none)")
        panel.grid(alpha=0.25)
    lowest = min(point.nats["l2r"] for curve in results.curves.values() for point in curve)
    panels[0].set(ylabel="held-out nats per byte", ylim=(lowest - 0.08, lowest + 1.2))
    panels[0].annotate("10 % of the parent's ", (SHARE * results.parent_tokens, lowest - 0.05),
                       color="dimgrey", fontsize=9, ha="right")  # fmt: skip
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _curve(folder: Path, name: str) -> list[Point]:
    """The evaluations of a run, behind those of the model that it started from."""
    per_step = tokens_per_step(load_recipe(folder / name / "recipe.yaml"))
    by_step: dict[int, dict[str, float]] = {}
    if name != "scratch":
        files = {order: folder / "start" / f"{name}-{order}.json" for order in ORDERS}
        by_step[0] = {o: json.loads(_read(f))["nll_nats_per_token"] for o, f in files.items()}
    for line in map(json.loads, _read(folder / name / "metrics.jsonl").splitlines()):
        if "eval_order" in line:
            of_step = by_step.setdefault(line["step"], {})
            of_step[line["eval_order"]] = line["nll_nats_per_token"]
    return [Point(step * per_step, nats) for step, nats in sorted(by_step.items())]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{path} must be there before there is anything to report, and is not "
            f"({error.strerror}): run tools/adapt_experiment.sh to its end"
        ) from error
