"""Results of checks: printed as they come, and kept in a JSON-lines file for the summary."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Status = Literal["pass", "fail", "info", "skip"]
STATUSES: tuple[Status, ...] = ("pass", "fail", "skip", "info")
NEEDS_CUDA = "skipped: needs CUDA"


@dataclass(frozen=True)
class Result:
    """One line of the check."""

    section: str
    status: Status
    name: str
    value: str
    bound: str = ""
    """What the value is held to; empty for figures without a bound."""


class Recorder:
    """Prints the results of one section and appends them to the results file.

    Args:
        section: name of the section.
        file: JSON-lines file that all sections append to.
    """

    def __init__(self, section: str, file: Path) -> None:
        self._section, self._file = section, file

    def check(self, ok: bool, name: str, value: object, bound: str = "") -> None:
        """Record a value that must hold a bound."""
        self._add("pass" if ok else "fail", name, value, bound)

    def info(self, name: str, value: object) -> None:
        """Record a figure that has no bound."""
        self._add("info", name, value)

    def skip(self, name: str, reason: str = NEEDS_CUDA) -> None:
        """Record a check that cannot run here."""
        self._add("skip", name, reason)

    def _add(self, status: Status, name: str, value: object, bound: str = "") -> None:
        result = Result(self._section, status, name, str(value), bound)
        expected = f"  (expected {bound})" if bound else ""
        print(f"{status.upper():4s}  {name:58s} {value}{expected}", flush=True)
        # Written at once, so that a section that crashes or hangs loses nothing.
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")


def read_results(file: Path) -> list[Result]:
    """Return the results in the file; none if no section has written any."""
    if not file.exists():
        return []
    return [Result(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def summary_table(results: Iterable[Result], seconds: dict[str, float]) -> str:
    """Return a Markdown table with the number of results of each status by section.

    Args:
        results: results of all sections.
        seconds: time of each section that ran, by name, in the order of the rows.
    """
    counts = Counter((result.section, result.status) for result in results)
    lines = [f"| section | {' | '.join(STATUSES)} | seconds |", "|---" * (2 + len(STATUSES)) + "|"]
    for section, elapsed in seconds.items():
        numbers = " | ".join(str(counts[section, status]) for status in STATUSES)
        lines.append(f"| {section} | {numbers} | {elapsed:.0f} |")
    return "\n".join(lines)
