"""The report as one HTML file with inline data and script, which needs no network."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import Any

from armd_scale.report.goodput import Goodput, goodput_of
from armd_scale.report.run_folder import Event, Run, differences
from armd_scale.report.summary import format_duration, summarize

MAX_POINTS = 2000
# page.css has the classes c0 to c7; a ninth run gets the color of the first.
NUM_COLORS = 8
_CURVES = (
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
# Titles of the parts of Goodput; its field names are also the CSS classes of their colors.
_GOODPUT_TITLES = {
    "steps": "training steps",
    "checkpoints": "checkpoints",
    "evaluations": "evaluations",
    "downtime": "downtime",
    "other": "start-up and other",
}
# Routine events, of which there are too many for a table.
_ROUTINE_EVENTS = ("start", "save", "evaluation")


def render(runs: Sequence[Run]) -> str:
    """Render the page about one run or several."""
    title = " · ".join(run.name for run in runs)
    sections = [
        _overview(runs),
        _warnings(runs),
        _section("Curves", '<div id="charts"></div><noscript>Curves need JavaScript.</noscript>'),
        _section("Orders", '<div id="orders"></div>'),
        _wall_clock(runs),
        _events(runs),
        _recipes(runs),
        _samples(runs),
    ]
    # NaN is not JSON. Reading has replaced it by None, so an error here is a bug.
    data = json.dumps([_data(run) for run in runs], separators=(",", ":"), allow_nan=False)
    values = {
        "title": escape(title),
        "style": _resource("page.css"),
        "script": _resource("page.js"),
        "legend": "".join(_legend(index, run) for index, run in enumerate(runs)),
        "body": "\n".join(filter(None, sections)),
        # A browser ends a script element at the first "</script", also inside a JSON string, which
        # the name of a run could contain.
        "data": data.replace("<", "\\u003c"),
    }
    # One pass over the template: text of a run that looks like {{style}} is not substituted again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return (files(__package__ or "") / name).read_text(encoding="utf-8")


def _data(run: Run) -> dict[str, Any]:
    """What the script draws: columns of the steps, evaluations by order, spans of orders."""
    lines = downsample(run.steps)
    return {
        "name": run.name,
        "steps": {key: [line.get(key) for line in lines] for key in _CURVES},
        "evaluations": _evaluations_by_order(run),
        "orders": order_spans(run.steps),
    }


def downsample(
    lines: Sequence[dict[str, Any]], max_points: int = MAX_POINTS
) -> list[dict[str, Any]]:
    """Keep about `max_points` lines: the lowest and the highest loss of each stretch.

    Every n-th line, or the mean of n, would hide spikes, which are what curves are looked at for.
    """
    if len(lines) <= max_points:
        return list(lines)
    # Two lines are kept of each stretch, so a stretch is 2 * len / max_points long, rounded up.
    length = -(-2 * len(lines) // max_points)
    kept = [lines[0]]
    for start in range(0, len(lines), length):
        stretch = [line for line in lines[start : start + length] if line.get("loss") is not None]
        if stretch:
            kept += [pick(stretch, key=lambda line: line["loss"]) for pick in (min, max)]
    kept.append(lines[-1])
    by_step = {line["step"]: line for line in kept}
    return [by_step[step] for step in sorted(by_step)]


def _evaluations_by_order(run: Run) -> dict[str, list[list[Any]]]:
    """Points [step, tokens, NLL] of every order."""
    # The page can plot over tokens, which evaluation lines do not have; they are looked up by step.
    tokens = {line["step"]: line.get("tokens") for line in run.steps}
    points: dict[str, list[list[Any]]] = {}
    for line in sorted(run.evaluations, key=lambda line: line["step"]):
        point = [line["step"], tokens.get(line["step"]), line.get("nll_nats_per_token")]
        points.setdefault(str(line["eval_order"]), []).append(point)
    return points


def order_spans(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group consecutive steps of one order policy; each span has its first and last amount.

    Args:
        steps: metrics of training steps, sorted by step.

    Returns:
        Objects with policy, start (exclusive) and stop (inclusive) step, first and last order.
    """
    spans: list[dict[str, Any]] = []
    for line in steps:
        order = str(line.get("order", "?"))
        # The policy is what precedes the amount, e.g. "progressive:8", or the parts of a mixture.
        policy = re.split(r"[:(]", order)[0]
        if not spans or spans[-1]["policy"] != policy:
            start = spans[-1]["stop"] if spans else 0
            spans.append({"policy": policy, "start": start, "first": order})
        spans[-1] |= {"stop": line["step"], "last": order}
    return spans


def _legend(index: int, run: Run) -> str:
    return (
        f'<button class="run c{index % NUM_COLORS}" aria-pressed="true" data-run="{index}">'
        f"<i></i>{escape(run.name)}</button>"
    )


def _section(title: str, content: str) -> str:
    return f'<section class="card"><h2>{title}</h2>{content}</section>'


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]], *, css_class: str = "") -> str:
    """An HTML table; its cells are escaped."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="{css_class}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _overview(runs: Sequence[Run]) -> str:
    summaries = [summarize(run) for run in runs]
    rows = [list(summary.values()) for summary in summaries]
    return _section("Overview", _table(list(summaries[0]), rows, css_class="numbers"))


def _warnings(runs: Sequence[Run]) -> str:
    texts = [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return _section("What could not be shown", f"<ul>{items}</ul>") if items else ""


def _wall_clock(runs: Sequence[Run]) -> str:
    bars = []
    for run in runs:
        goodput = goodput_of(run)
        if goodput is None:
            text = f"{escape(run.name)}: the files do not say how long it ran"
            bars.append(f'<p class="bar-name">{text}</p>')
        else:
            bars.append(_goodput_bar(run.name, goodput))
    legend = "".join(
        f'<span><i class="{key}"></i>{title}</span>' for key, title in _GOODPUT_TITLES.items()
    )
    return _section("Where time went", "".join(bars) + f'<p class="bar-legend">{legend}</p>')


def _goodput_bar(name: str, goodput: Goodput) -> str:
    parts = {key: seconds for key, seconds in asdict(goodput).items() if seconds > 0}
    text = ", ".join(
        f"{_GOODPUT_TITLES[key]} {format_duration(seconds)} ({100 * seconds / goodput.total:.1f} %)"
        for key, seconds in parts.items()
    )
    pieces = "".join(
        f'<i class="{key}" style="flex:{seconds / goodput.total:.5f}" '
        f'title="{_GOODPUT_TITLES[key]}: {format_duration(seconds)}"></i>'
        for key, seconds in parts.items()
    )
    heading = f"<b>{escape(name)}</b>, {format_duration(goodput.total)}: {text}"
    return f'<p class="bar-name">{heading}</p><div class="bar">{pieces}</div>'


def _events(runs: Sequence[Run]) -> str:
    rows = [
        (event.time.isoformat(" ", "seconds"), run.name, event.kind, event.step, _details(event))
        for run in runs
        for event in run.events
        if event.kind not in _ROUTINE_EVENTS
    ]
    # Times in ISO format sort as text.
    titles = ("time", "run", "event", "step", "details")
    table = _table(titles, sorted(rows)) if rows else "<p>No resume, skipped step or stop.</p>"
    saves = ", ".join(f"{run.name} {len(run.events_of('save'))}" for run in runs)
    return _section("Events", f"{table}<p>Checkpoints saved: {escape(saves)}.</p>")


def _details(event: Event) -> str:
    return ", ".join(f"{key}: {value}" for key, value in event.values.items())


def _recipes(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    parts = []
    if len(runs) > 1:
        rows = [(key, *map(_recipe_value, row)) for key, row in differences(runs).items()]
        no_rows = "<p>The recipes are equal.</p>"
        parts.append(_table(("key", *names), rows, css_class="recipe") if rows else no_rows)
    keys = list(dict.fromkeys(key for run in runs for key in run.recipe))
    rows = [(key, *(_recipe_value(run.recipe.get(key)) for run in runs)) for key in keys]
    if rows:
        table = _table(("key", *names), rows, css_class="recipe")
        parts.append(f"<details><summary>All {len(rows)} keys</summary>{table}</details>")
    title = "What differs between the recipes" if len(runs) > 1 else "Recipe"
    return _section(title, "".join(parts)) if parts else ""


def _recipe_value(value: object) -> str:
    return "–" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def _samples(runs: Sequence[Run]) -> str:
    texts = [
        f"<details open><summary>{escape(run.name)}: {escape(name)}</summary>"
        f"<pre>{escape(text)}</pre></details>"
        for run in runs
        for name, text in run.samples.items()
    ]
    return _section("Samples", "".join(texts)) if texts else ""
