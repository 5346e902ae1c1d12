"""Measures what the README states: one figure a subcommand, printed as a Markdown table.

Example: python tools/bench.py memory --ranks 4 --json memory.json
"""

import argparse
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from armd_scale.bench.rows import markdown, write_json
from armd_scale.errors import run_command
from armd_scale.parallel.environment import read_environment


class Bench(NamedTuple):
    """A subcommand: the package's function takes its options and returns rows."""

    summary: str
    function: str
    options: dict[str, dict[str, Any]]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


RANKS = {"type": _positive, "default": 4, "metavar": "N", "help": "processes (default: 4)"}
MEMORY = "bytes that each ZeRO stage holds on a process, against the ZeRO paper's"
BENCHES = {
    "memory": Bench(MEMORY, "armd_scale.bench.memory:measure_memory", {"--ranks": RANKS}),
}


def main() -> None:
    """Runs a benchmark, prints its table, and writes the JSON file."""
    args = vars(_parser().parse_args())
    bench, file = BENCHES[args.pop("bench")], args.pop("json")
    read_environment()  # before the import: DeepSpeed reads it then
    rows = resolve_name(bench.function)(**args)
    if file is not None:
        write_json(rows, file)
    print(markdown(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, bench in BENCHES.items():
        command = commands.add_parser(name, help=bench.summary, description=bench.summary)
        for flag, option in bench.options.items():
            command.add_argument(flag, **option)
        command.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser


if __name__ == "__main__":
    run_command(main)
