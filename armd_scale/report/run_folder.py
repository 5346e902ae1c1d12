"""Read a run folder: metrics, events, log times, recipe, samples; name what is missing."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from armd_scale.config.codec import to_dict
from armd_scale.config.load import load_recipe
from armd_scale.errors import ArmdError, TrainingError
from armd_scale.files import open_regular, read_error_reason
from armd_scale.json_files import parse_json
from armd_scale.metrics.events import EVENTS_FILE

MAX_SAMPLE_CHARACTERS = 4000
# The format of `logging` for times: local like those of events.jsonl, with a comma before the
# milliseconds.
_LOG_TIME = re.compile(r"([0-9]{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ", re.ASCII)
# Keys of metrics.jsonl and events.jsonl that are calculated with; null is a figure that is unknown.
_NUMBERS = frozenset({
    "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "step_seconds", "mfu",
    "hfu", "memory_gib", "nll_nats_per_token", "wait_seconds", "seconds",
})  # fmt: skip
_TEXTS = frozenset({"order", "eval_order", "event"})
# Sums of such numbers stay far from infinity.
_LARGEST = 1e15


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl, whose format armd_scale/metrics/events.py describes."""

    time: datetime
    kind: str
    step: int
    values: dict[str, Any] = field(default_factory=dict)
    """The other keys of the line."""


@dataclass(kw_only=True)
class Run:
    """The contents of a run folder."""

    folder: Path
    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of training steps, sorted by step."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of evaluations."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Values by dotted key."""
    events: list[Event] = field(default_factory=list)
    """What happened, in order of time. Steps that a resume repeated are in it several times."""
    times: list[datetime] = field(default_factory=list)
    """Times at which the run was alive, sorted: of events and of all log lines."""
    samples: dict[str, str] = field(default_factory=dict)
    """Text by file name."""
    warnings: list[str] = field(default_factory=list)
    """What could not be read, in sentences."""

    def events_of(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event.kind == kind]


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        TrainingError: the folder does not exist or has none of the files of a run.
    """
    if not folder.is_dir():
        raise TrainingError(
            f"a report requires a run folder ({folder} is not a folder): fix its name"
        )
    run = Run(folder=folder, name=folder.resolve().name)
    # A list, not a generator inside any(): every reader must run, also after one that found a file.
    has_files = [
        reader(run) for reader in (_read_recipe, _read_metrics, _read_events, _read_log_times)
    ]
    if not any(has_files):
        raise TrainingError(
            f"a run folder must contain recipe.yaml, metrics.jsonl, {EVENTS_FILE} or log.txt "
            f"({folder} has none of them): give the run.folder of a training run"
        )
    run.times.sort()
    _read_samples(run)
    return run


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Recipe keys whose values differ, with the value of each run; None if a recipe lacks one."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    values = {key: [run.recipe.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row[1:])}


def _read_recipe(run: Run) -> bool:
    path = run.folder / "recipe.yaml"
    if not path.is_file():
        run.warnings.append("There is no recipe.yaml: training has not started in this folder.")
        return False
    try:
        recipe = load_recipe(path, expand_paths=False)
    # Curves need no recipe: one that this version refuses, such as an old one, is a warning.
    except ArmdError as error:
        run.warnings.append(f"The recipe cannot be read: {error}.")
        return True
    run.name = recipe.run.name
    run.recipe = dict(_flatten(to_dict(recipe)))
    return True


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; a list of plain values is a leaf."""
    children: Iterable[tuple[object, Any]]
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        children = enumerate(value)
    else:
        yield path, value
        return
    for key, child in children:
        yield from _flatten(child, f"{path}.{key}" if path else str(key))


def _read_metrics(run: Run) -> bool:
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        run.warnings.append("There is no metrics.jsonl: nothing has been logged yet.")
        return False
    steps: dict[int, dict[str, Any]] = {}
    for values in _read_lines(run, path):
        # Other lines, of skipped steps and saves, are also events, with their times.
        if "eval_order" in values:
            run.evaluations.append(values)
        elif "loss" in values:
            # The last line of a step counts: files that several runs wrote to have more than one.
            steps[values["step"]] = values
    if not steps:
        run.warnings.append("metrics.jsonl has no training step yet.")
    run.steps = [steps[step] for step in sorted(steps)]
    return True


def _read_events(run: Run) -> bool:
    path = run.folder / EVENTS_FILE
    if not path.is_file():
        run.warnings.append(f"There is no {EVENTS_FILE}, so events and their times are unknown.")
        return False
    num_skipped = 0
    for values in _read_lines(run, path):
        try:
            # A line that lacks one of these keys, or has another type there, is counted instead.
            time = datetime.fromisoformat(values.pop("time"))
            event = Event(time, values.pop("event"), values.pop("step"), values)
        except (KeyError, ValueError, TypeError):
            num_skipped += 1
            continue
        # Times are local, without a zone; others cannot be compared with them.
        if time.tzinfo is None:
            run.events.append(event)
        else:
            num_skipped += 1
    if num_skipped:
        run.warnings.append(f"Lines of {EVENTS_FILE} that are not events: {num_skipped}.")
    run.times += [event.time for event in run.events]
    return True


def _read_log_times(run: Run) -> bool:
    """Read when the log was written to, not what it says.

    A run that is killed writes no last event; its last log line, at most some seconds before, then
    tells when the downtime started.
    """
    path = run.folder / "log.txt"
    if not path.is_file():
        run.warnings.append("There is no log.txt, so it is unknown when a run was killed.")
        return False
    num_skipped = 0
    for line in _lines_of(run, path):
        match = _LOG_TIME.match(line)
        if match is None:  # the second line of a message
            continue
        try:
            run.times.append(datetime.fromisoformat(f"{match[1]}.{match[2]}"))
        except ValueError:  # such as a 30th of February
            num_skipped += 1
    if num_skipped:
        run.warnings.append(f"Lines of log.txt with a time that does not exist: {num_skipped}.")
    return True


def _lines_of(run: Run, path: Path) -> Iterator[str]:
    """Yield the lines of a text file one by one; a warning if it cannot be read to its end."""
    try:
        with open_regular(path) as file:
            for line in file:
                # A crash may cut a character in half, which makes one unreadable line.
                yield line.decode(errors="replace")
    except OSError as error:
        run.warnings.append(f"{path.name} cannot be read ({read_error_reason(error)}).")


def _read_lines(run: Run, path: Path) -> list[dict[str, Any]]:
    """The lines that are JSON objects with a step; others are counted in a warning."""
    lines, num_unreadable = [], 0
    for line in _lines_of(run, path):
        values = _parse(line)
        # A killed process leaves an unfinished last line, which is an ordinary thing to find.
        if values is not None:
            lines.append(values)
        elif line.strip():
            num_unreadable += 1
    if num_unreadable:
        run.warnings.append(
            f"Lines of {path.name} that are not JSON objects with a step, or have no number where "
            f"one must be: {num_unreadable}."
        )
    return lines


def _parse(line: str) -> dict[str, Any] | None:
    """Parse a line; replace numbers that are not finite by None, which JSON and browsers know."""
    try:
        values = parse_json(line, allow_nan=True)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    values = {key: _finite_or_none(value) for key, value in values.items()}
    return values if _is_usable(values) else None


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_usable(values: Mapping[str, Any]) -> bool:
    """Whether everything that the report calculates with has its type."""
    step = values.get("step")
    # Not isinstance: true is an int too.
    if type(step) is not int or not 0 <= step <= _LARGEST:
        return False
    numbers = (values[key] for key in _NUMBERS & values.keys() if values[key] is not None)
    if not all(type(x) in (int, float) and abs(x) <= _LARGEST for x in numbers):
        return False
    return all(isinstance(values[key], str) for key in _TEXTS & values.keys())


def _read_samples(run: Run) -> None:
    """Read generated texts: the .txt files of the folder and of its samples/."""
    paths = [*run.folder.glob("samples/*.txt"), *run.folder.glob("*.txt")]
    for path in sorted(path for path in paths if path.name != "log.txt"):
        name = str(path.relative_to(run.folder))
        try:
            with open_regular(path) as file:
                # A character has at most 4 bytes.
                text = file.read(4 * MAX_SAMPLE_CHARACTERS + 4).decode(errors="replace")
        except OSError as error:
            run.warnings.append(f"{name} cannot be read ({read_error_reason(error)}).")
            continue
        ellipsis = "" if len(text) <= MAX_SAMPLE_CHARACTERS else " …"
        run.samples[name] = text[:MAX_SAMPLE_CHARACTERS] + ellipsis
