"""The overview row of a run: its most important numbers, formatted for people."""

from statistics import median

from armd_scale.report.goodput import goodput_of
from armd_scale.report.run_folder import Run


def summarize(run: Run) -> dict[str, str]:
    """Return the overview of a run: formatted values by column title."""
    last = run.steps[-1] if run.steps else {}
    num_steps = run.recipe.get("train.steps")
    best = _best_nll_by_order(run)
    goodput = goodput_of(run)
    return {
        "run": run.name,
        "step": f"{last.get('step', 0):,}" + (f" of {num_steps:,}" if num_steps else ""),
        "tokens": abbreviate(last.get("tokens")),
        "loss": _format(last.get("loss"), ".4f"),
        "best NLL by order": ", ".join(f"{order} {nll:.4f}" for order, nll in best.items()) or "–",
        # Medians, so that slow steps, such as the first one of each start, hardly count.
        "tokens/s": abbreviate(_median(run, "tokens_per_second")),
        "MFU": _percent(_median(run, "mfu")),
        "HFU": _percent(_median(run, "hfu")),
        "memory": _format(_max(run, "memory_gib"), ".2f", " GiB"),
        "goodput": _percent(goodput.steps / goodput.total if goodput else None),
    }


def _best_nll_by_order(run: Run) -> dict[str, float]:
    best: dict[str, float] = {}
    for line in run.evaluations:
        nll = line.get("nll_nats_per_token")
        if nll is not None:
            order = str(line["eval_order"])
            best[order] = min(nll, best.get(order, nll))
    return best


def _values(run: Run, key: str) -> list[float]:
    return [float(line[key]) for line in run.steps if line.get(key) is not None]


def _median(run: Run, key: str) -> float | None:
    values = _values(run, key)
    return float(median(values)) if values else None


def _max(run: Run, key: str) -> float | None:
    return max(_values(run, key), default=None)


def _format(value: int | float | None, spec: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{spec}}{unit}"


def _percent(value: int | float | None) -> str:
    return _format(None if value is None else 100 * value, ".1f", " %")


def abbreviate(value: int | float | None) -> str:
    """Format with three digits and a letter, e.g. 1.25 M."""
    if value is None:
        return "–"
    value = float(f"{value:.3g}")  # first, because 999,600 rounds to 1 M
    # B, not G, for 10^9: the field counts tokens in billions.
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def format_duration(seconds: int | float) -> str:
    """Format seconds in the unit that reads best, e.g. 90.0 s or 2.5 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
