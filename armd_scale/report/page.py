"""The report as HTML: data and script inline, so that the page is one file without a network."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import Any

from armd_scale.report.goodput import goodput_of
from armd_scale.report.run_folder import Run, differences
from armd_scale.report.summary import duration, figures

MOST_POINTS = 2000
SHOWN = (
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens",
    "tokens_per_second",
    "step_seconds",
    "mfu",
    "hfu",
    "memory_gib",
)
GOODPUT = {
    "steps": "training steps",
    "checkpoints": "checkpoints",
    "evaluations": "evaluations",
    "stopped": "stopped",
    "rest": "start-up and the rest",
}


def render(runs: Sequence[Run]) -> str:
    """The page about one run or several."""
    title = " · ".join(run.name for run in runs)
    sections = [
        _overview(runs),
        _remarks(runs),
        _section("Curves", '<div id="charts"></div><noscript>Curves need JavaScript.</noscript>'),
        _section("Orders", '<div id="orders"></div>'),
        _time(runs),
        _events(runs),
        _recipes(runs),
        _samples(runs),
    ]
    data = json.dumps([_data(run) for run in runs], separators=(",", ":"), allow_nan=False)
    values = {
        "title": escape(title),
        "style": _resource("page.css"),
        "script": _resource("page.js"),
        "legend": "".join(map(_legend, range(len(runs)), runs)),
        "body": "\n".join(filter(None, sections)),
        # Nothing in a script element may look like its end.
        "data": data.replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda hole: values[hole[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return (files(__package__ or "") / name).read_text(encoding="utf-8")


def _data(run: Run) -> dict[str, Any]:
    """What the script draws: columns of the steps, evaluations by order, spans of orders."""
    lines = downsample(run.steps)
    return {
        "name": run.name,
        "steps": {key: [line.get(key) for line in lines] for key in SHOWN},
        "evaluations": _by_order(run),
        "orders": order_spans(run.steps),
    }


def downsample(lines: Sequence[dict[str, Any]], most: int = MOST_POINTS) -> list[dict[str, Any]]:
    """At most about `most` lines: of each stretch the lowest and highest loss, so spikes stay."""
    if len(lines) <= most:
        return list(lines)
    size = -(-2 * len(lines) // most)
    kept = [lines[0]]
    for start in range(0, len(lines), size):
        stretch = [line for line in lines[start : start + size] if line.get("loss") is not None]
        if stretch:
            low, high = (pick(stretch, key=lambda line: line["loss"]) for pick in (min, max))
            kept += sorted({one["step"]: one for one in (low, high)}.values(), key=_step)
    return sorted({line["step"]: line for line in [*kept, lines[-1]]}.values(), key=_step)


def _step(line: dict[str, Any]) -> int:
    return line["step"]


def _by_order(run: Run) -> dict[str, list[list[Any]]]:
    tokens = {line["step"]: line.get("tokens") for line in run.steps}
    found: dict[str, list[list[Any]]] = {}
    for line in sorted(run.evaluations, key=_step):
        point = [line["step"], tokens.get(line["step"]), line.get("nll_nats_per_token")]
        found.setdefault(str(line["eval_order"]), []).append(point)
    return found


def order_spans(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stretches of steps under one policy, with its amounts at both ends."""
    spans: list[dict[str, Any]] = []
    for line in steps:
        order = str(line.get("order", "?"))
        policy = re.split(r"[:(]", order)[0]
        if not spans or spans[-1]["policy"] != policy:
            start = spans[-1]["stop"] if spans else 0
            spans.append({"policy": policy, "start": start, "first": order})
        spans[-1] |= {"stop": line["step"], "last": order}
    return spans


def _legend(number: int, run: Run) -> str:
    return (
        f'<button class="run c{number % 8}" aria-pressed="true" data-run="{number}">'
        f"<i></i>{escape(run.name)}</button>"
    )


def _section(title: str, content: str) -> str:
    return f'<section class="card"><h2>{title}</h2>{content}</section>'


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], *, kind: str = "") -> str:
    """Cells are escaped."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _overview(runs: Sequence[Run]) -> str:
    rows = [list(figures(run).values()) for run in runs]
    return _section("At a glance", _table(list(figures(runs[0])), rows, kind="numbers"))


def _remarks(runs: Sequence[Run]) -> str:
    items = [f"{run.name}: {remark}" for run in runs for remark in run.warnings]
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return _section("What could not be shown", f"<ul>{listed}</ul>") if items else ""


def _time(runs: Sequence[Run]) -> str:
    bars = []
    for run in runs:
        spent = goodput_of(run)
        if spent is None:
            text = "the log holds too little to tell"
            bars.append(f'<p class="bar-name">{escape(run.name)}: {text}</p>')
            continue
        parts = asdict(spent)
        told = ", ".join(
            f"{GOODPUT[name]} {duration(seconds)} ({100 * seconds / spent.total:.1f} %)"
            for name, seconds in parts.items()
            if seconds > 0
        )
        pieces = "".join(
            f'<i class="{name}" style="flex:{seconds / spent.total:.5f}" '
            f'title="{GOODPUT[name]}: {duration(seconds)}"></i>'
            for name, seconds in parts.items()
            if seconds > 0
        )
        name = f"<b>{escape(run.name)}</b>, {duration(spent.total)}: {told}"
        bars.append(f'<p class="bar-name">{name}</p><div class="bar">{pieces}</div>')
    legend = "".join(f'<span><i class="{key}"></i>{text}</span>' for key, text in GOODPUT.items())
    return _section("Where time went", "".join(bars) + f'<p class="bar-legend">{legend}</p>')


def _events(runs: Sequence[Run]) -> str:
    rows = [
        (event.time.isoformat(" ", "seconds"), run.name, event.kind, event.text)
        for run in runs
        for event in run.events
        if event.kind not in ("save", "start")
    ]
    saves = ", ".join(
        f"{run.name} {sum(event.kind == 'save' for event in run.events)}" for run in runs
    )
    table = _table(("time", "run", "kind", "line of log.txt"), sorted(rows)) if rows else ""
    none = "" if rows else "<p>No resume, stop or warning.</p>"
    return _section("Events", f"{table}{none}<p>Checkpoints saved: {escape(saves)}.</p>")


def _recipes(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    parts = []
    if len(runs) > 1:
        rows = [(key, *map(_value, row)) for key, row in differences(runs).items()]
        empty = "<p>The recipes are equal.</p>"
        parts.append(_table(("key", *names), rows, kind="recipe") if rows else empty)
    keys = list(dict.fromkeys(key for run in runs for key in run.recipe))
    rows = [(key, *(_value(run.recipe.get(key)) for run in runs)) for key in keys]
    if rows:
        table = _table(("key", *names), rows, kind="recipe")
        parts.append(f"<details><summary>All {len(rows)} keys</summary>{table}</details>")
    title = "What differs between the recipes" if len(runs) > 1 else "Recipe"
    return _section(title, "".join(parts)) if parts else ""


def _value(value: object) -> str:
    return "–" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def _samples(runs: Sequence[Run]) -> str:
    texts = [
        f"<details open><summary>{escape(run.name)}: {escape(name)}</summary>"
        f"<pre>{escape(text)}</pre></details>"
        for run in runs
        for name, text in run.samples.items()
    ]
    return _section("Samples", "".join(texts)) if texts else ""
