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


def _number(default: int, summary: str) -> dict[str, Any]:
    return {"type": _positive, "default": default, "metavar": "N", "help": f"{summary} ({default})"}


CHECKPOINT = {"required": True, "help": "a checkpoint, or a run folder: its newest one"}
RUNS = _number(7, "how often each is timed")
HF = {"type": Path, "metavar": "FOLDER", "help": "the same weights for transformers' generate"}
BENCHES = {
    "memory": Bench(
        "bytes that each ZeRO stage holds on a process, against the ZeRO paper's",
        "armd_scale.bench.memory:measure_memory",
        {"--ranks": _number(4, "processes")},
    ),
    "checkpoint": Bench(
        "how long training waits for a save, in the foreground and in the background",
        "armd_scale.bench.checkpoint:measure_saves",
        {"--saves": _number(5, "saves of either kind")},
    ),
    "step": Bench(
        "training steps of AR, ARMD and other AR stacks, side by side",
        "armd_scale.bench.step:compare_steps",
        {"--shape": {"default": "small", "help": "small | 125m | 1b | 8b-layers"}, "--runs": RUNS},
    ),
    "attention": Bench(
        "attention for both streams: folded, with masks, and doubled",
        "armd_scale.bench.attention:compare_attention",
        {"--runs": RUNS},
    ),
    "scaling": Bench(
        "step time against layers, samples and length of text",
        "armd_scale.bench.scaling:compare_sizes",
        {"--runs": _number(5, "how often each is timed")},
    ),
    "loading": Bench(
        "tokens that the loader makes, beside tokens that training uses up",
        "armd_scale.bench.loading:compare_loading",
        {"--recipe": {"type": Path, "required": True, "help": "of a run whose shards exist"}},
    ),
    "decode": Bench(
        "tokens a second in streams, verified, and by transformers",
        "armd_scale.bench.decode:measure_decoding",
        {"--checkpoint": CHECKPOINT, "--tokens": _number(256, "length of the text"), "--hf": HF}
        | {"--runs": _number(5, "how often each is timed")},
    ),
    "rounds": Bench(
        "where a round of decoding spends its time, as the text grows",
        "armd_scale.bench.decode:measure_rounds",
        {"--checkpoint": CHECKPOINT, "--streams": _number(1, "parallel streams")},
    ),
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
