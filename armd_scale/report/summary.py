"""A run in a handful of numbers, as people read them."""

from statistics import median

from armd_scale.report.goodput import goodput_of
from armd_scale.report.run_folder import Run


def figures(run: Run) -> dict[str, str]:
    """A run at a glance, by name of the figure."""
    last = run.steps[-1] if run.steps else {}
    goal = run.recipe.get("train.steps")
    best: dict[str, float] = {}
    for line in run.evaluations:
        value = line.get("nll_nats_per_token")
        if value is not None:
            order = str(line["eval_order"])
            best[order] = min(value, best.get(order, value))
    spent = goodput_of(run)
    return {
        "run": run.name,
        "step": f"{last.get('step', 0):,}" + (f" of {goal:,}" if goal else ""),
        "tokens": _short(last.get("tokens")),
        "loss": _number(last.get("loss"), ".4f"),
        "best NLL by order": ", ".join(f"{o} {v:.4f}" for o, v in best.items()) or "–",
        "tokens/s": _short(_middle(run, "tokens_per_second")),
        "MFU": _percent(_middle(run, "mfu")),
        "HFU": _percent(_middle(run, "hfu")),
        "memory": _number(_most(run, "memory_gib"), ".2f", " GiB"),
        "goodput": _percent(spent.steps / spent.total if spent else None),
    }


def _values(run: Run, key: str) -> list[float]:
    return [float(line[key]) for line in run.steps if line.get(key) is not None]


def _middle(run: Run, key: str) -> float | None:
    values = _values(run, key)
    return float(median(values)) if values else None


def _most(run: Run, key: str) -> float | None:
    return max(_values(run, key), default=None)


def _number(value: int | float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _percent(value: int | float | None) -> str:
    return _number(None if value is None else 100 * value, ".1f", " %")


def _short(value: int | float | None) -> str:
    """Three digits and a letter."""
    if value is None:
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def duration(seconds: int | float) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
