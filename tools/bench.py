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
BENCHES = {
    "memory": Bench(
        "bytes that each ZeRO stage holds on a process, against the ZeRO paper's",
        "armd_scale.bench.memory:measure_memory",
        {"--ranks": RANKS},
    ),
}


def main() -> None:
    """Runs a benchmark, prints its table, and writes the JSON file."""
    args = vars(_parser().parse_args())
    function, file = BENCHES[args.pop("bench")].function, args.pop("json")
    read_environment()  # before what is imported now: DeepSpeed reads it on import
    rows = resolve_name(function)(**args)
    if file is not None:
        write_json(rows, file)
    print(markdown(rows))


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, bench in BENCHES.items():
        command = commands.add_parser(name, help=bench.summary, description=bench.summary)
        for flag, option in bench.options.items():
            command.add_argument(flag, **option)
        command.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser


if __name__ == "__main__":
    run_command(main)
