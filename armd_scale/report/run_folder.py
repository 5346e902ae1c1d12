"""A run's folder as data: metrics, log, recipe, samples; whatever is absent is said, not missed."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from armd_scale.config.codec import to_dict
from armd_scale.config.load import load_recipe
from armd_scale.errors import ArmdError, TrainingError

LONGEST_SAMPLE = 4000
LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (.*)")
PROGRESS = re.compile(r"\S+ [\d.e+]+/[\d.e+]+ steps ")
KINDS = {
    "start": re.compile(r"starting .* on \d+ processes"),
    "resume": re.compile(r"resumed from "),
    "stop": re.compile(r"stopped by signal|stopped "),
    "save": re.compile(r"saved "),
    "warning": re.compile(
        r"warn|error|fail|skip|spike|lost|gone|damaged|not finite", re.IGNORECASE
    ),
}


@dataclass(frozen=True)
class Event:
    """A line of log.txt that is worth a look."""

    time: datetime
    kind: str
    text: str


@dataclass(kw_only=True)
class Run:
    """What a run's folder tells."""

    folder: Path
    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Lines of training steps, in order of their steps."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    other_lines: list[dict[str, Any]] = field(default_factory=list)
    """Other lines of metrics.jsonl, such as the time that a save took."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Values by dotted key."""
    events: list[Event] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    """Of all lines of the log."""
    samples: dict[str, str] = field(default_factory=dict)
    """Text by file name."""
    warnings: list[str] = field(default_factory=list)
    """What could not be read, in sentences."""


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        TrainingError: there is no such folder, or nothing of a run in it.
    """
    if not folder.is_dir():
        raise TrainingError(f"a report needs a run's folder, and {folder} is none: check its name")
    run = Run(folder=folder, name=folder.resolve().name)
    found = [reader(run) for reader in (_read_recipe, _read_metrics, _read_log, _read_samples)]
    if not any(found):
        raise TrainingError(
            f"a run's folder must hold recipe.yaml, metrics.jsonl or log.txt, and {folder} holds "
            "none: give the run.folder of a training run"
        )
    return run


def _read_recipe(run: Run) -> bool:
    path = run.folder / "recipe.yaml"
    if not path.is_file():
        run.warnings.append("There is no recipe.yaml: training has not begun here.")
        return False
    try:
        recipe = load_recipe(path)
    except ArmdError as error:
        run.warnings.append(f"The recipe cannot be read: {error}.")
        return True
    run.name = recipe.run.name
    run.recipe = dict(_flat(to_dict(recipe)))
    return True


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves by dotted key; lists of plain values are leaves."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{number}")
    else:
        yield path, value


def _read_metrics(run: Run) -> bool:
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        run.warnings.append("There is no metrics.jsonl: nothing was logged yet.")
        return False
    unread = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        values = _object(line)
        if values is None:
            unread += bool(line.strip())
        elif "eval_order" in values:
            run.evaluations.append(values)
        elif "loss" in values:
            run.steps.append(values)
        else:
            run.other_lines.append(values)
    if unread:
        run.warnings.append(
            f"Lines of metrics.jsonl that are no JSON objects with a step: {unread}."
        )
    if not run.steps:
        run.warnings.append("metrics.jsonl holds no training step yet.")
    run.steps = list({values["step"]: values for values in run.steps}.values())
    run.steps.sort(key=lambda values: values["step"])
    return True


def _object(line: str) -> dict[str, Any] | None:
    """A metrics line with its numbers finite, others None; None where it is no such line."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    return {key: _finite(value) for key, value in values.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_log(run: Run) -> bool:
    path = run.folder / "log.txt"
    if not path.is_file():
        run.warnings.append("There is no log.txt, so times and events are unknown.")
        return False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = LOG_LINE.fullmatch(line)
        if match is None:
            continue
        time = datetime.fromisoformat(f"{match[1]}.{match[2]}")
        run.times.append(time)
        kind = _kind(match[3])
        if kind is not None:
            run.events.append(Event(time, kind, match[3]))
    return True


def _kind(text: str) -> str | None:
    if PROGRESS.match(text):
        return None
    return next((kind for kind, pattern in KINDS.items() if pattern.search(text)), None)


def _read_samples(run: Run) -> bool:
    paths = [*run.folder.glob("samples/*.txt"), *run.folder.glob("*.txt")]
    for path in sorted(path for path in paths if path.name != "log.txt"):
        text = path.read_text(encoding="utf-8", errors="replace")
        cut = "" if len(text) <= LONGEST_SAMPLE else " …"
        run.samples[str(path.relative_to(run.folder))] = text[:LONGEST_SAMPLE] + cut
    return False


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Keys in which recipes differ, with each run's value; a key that a recipe lacks is None."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    values = {key: [run.recipe.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if any(one != row[0] for one in row[1:])}
