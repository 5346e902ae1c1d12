"""The benches by name: what each measures, the function that does, and its options."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from armd_scale.bench.table import Row, markdown
from armd_scale.files import atomic_write_json, require_writable
from armd_scale.parallel.environment import read_environment


class Bench(NamedTuple):
    """A subcommand: the package's function takes its options and returns rows."""

    summary: str
    function: str
    """Imported only when it is asked for."""
    options: Mapping[str, Mapping[str, Any]]
    example: str
    """Options to show in the help, after the subcommand's name."""


def run_bench(args: argparse.Namespace) -> None:
    """Measures, prints a table, and writes the JSON file where one was asked for.

    Of a job of several processes the first one prints and writes.

    Args:
        args: from the parser of `bench_parser`.

    Raises:
        ArmdError: the JSON file cannot be written, or what the bench itself refuses.
    """
    options = vars(args).copy()
    bench, file = BENCHES[options.pop("bench")], options.pop("json")
    require_writable(file, "--json")
    here = read_environment()  # before the import: DeepSpeed reads it then
    rows: list[Row] = resolve_name(bench.function)(**options)
    if not here.is_rank0:
        return
    if file is not None:
        atomic_write_json(file, rows, indent=2)
    print(markdown(rows))


def bench_parser(description: str | None) -> argparse.ArgumentParser:
    """A subcommand for each bench, with an example in its help."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, bench in BENCHES.items():
        about = f"{bench.summary}. Example: python tools/bench.py {name} {bench.example}"
        command = commands.add_parser(name, help=bench.summary, description=about)
        for flag, option in bench.options.items():
            command.add_argument(flag, **option)
        command.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder that exists, got {text!r}")
    return Path(text)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"must be a file that exists, got {text!r}")
    return Path(text)


def _number(default: int, summary: str) -> dict[str, Any]:
    return {"type": _positive, "default": default, "metavar": "N", "help": f"{summary} ({default})"}


def _numbers(*default: int, summary: str) -> dict[str, Any]:
    said = " ".join(map(str, default))
    many = {"type": _positive, "nargs": "+", "default": default, "metavar": "N"}
    return {**many, "help": f"{summary} ({said})"}


SHAPES = ("small", "125m", "1b", "8b-layers")
_SHAPE = {"choices": SHAPES, "default": "small", "help": "size of the networks (small)"}
GROWS = ("layers", "micro_batch", "seq_length", "accumulation", "stages")
_GROWS = {"choices": GROWS, "nargs": "+", "default": GROWS, "help": "one after another (all)"}
_CHECKPOINT = {"required": True, "help": "a checkpoint, or a run folder: its newest one"}
_RECIPE = {"type": _file, "required": True, "metavar": "FILE", "help": "of a run that has shards"}
_HF = {"type": _folder, "metavar": "FOLDER", "help": "the same weights for transformers' generate"}
_PLACE = {"type": _folder, "metavar": "FOLDER", "help": "on the storage to measure (temporary)"}
_SHARES = {"action": "store_true", "help": "add the shares of matrix products and attention"}
_RUNS = _number(7, "how often each is timed")

BENCHES = {
    "memory": Bench(
        "bytes that each ZeRO stage holds on a process, against the ZeRO paper's",
        "armd_scale.bench.suites.memory:measure_memory",
        {"--ranks": _number(4, "processes")},
        "--ranks 4 --json memory.json",
    ),
    "checkpoint": Bench(
        "how long training waits for a save, and bandwidth of save and load beside dd",
        "armd_scale.bench.suites.checkpoint:measure_saves",
        {"--saves": _number(5, "saves of either kind"), "--folder": _PLACE},
        "--saves 3 --folder /scratch",
    ),
    "step": Bench(
        "training steps of AR, ARMD and other AR stacks, side by side",
        "armd_scale.bench.suites.step:compare_steps",
        {"--shape": _SHAPE, "--runs": _RUNS, "--profile": _SHARES},
        "--shape small --runs 7 --profile",
    ),
    "profile": Bench(
        "operators that training steps of AR, ARMD and other AR stacks spend their time in",
        "armd_scale.bench.profiler:profile_steps",
        {"--shape": _SHAPE, "--steps": _number(3, "steps of each network")}
        | {"--top": _number(6, "operators of each group to name")},
        "--shape small --json profile.json",
    ),
    "matmul": Bench(
        "operations a second of square matrix products, and the peak that MFU is a share of",
        "armd_scale.bench.suites.matmul:measure_products",
        {"--runs": _RUNS},
        "--runs 7",
    ),
    "attention": Bench(
        "attention for both streams: folded, with masks, and doubled",
        "armd_scale.bench.suites.attention:compare_attention",
        {"--runs": _RUNS},
        "--runs 7",
    ),
    "loss": Bench(
        "peak memory and time of the head with its loss: dense, in chunks, and ours",
        "armd_scale.bench.suites.lm_head:compare_heads",
        {"--runs": _number(5, "how often each is timed")},
        "--runs 5 --json loss.json",
    ),
    "scaling": Bench(
        "step time against layers, samples, length of text, micro-batches and pipeline stages",
        "armd_scale.bench.suites.scaling:compare_sizes",
        {"--grows": _GROWS, "--runs": _number(5, "how often each is timed")},
        "--grows layers seq_length --runs 5",
    ),
    "loading": Bench(
        "tokens that the loader makes, beside tokens that training uses up",
        "armd_scale.bench.suites.loading:compare_loading",
        {"--recipe": _RECIPE, "--seconds": _number(2, "length of a run of the loader")}
        | {"--runs": _number(5, "how often each is timed")},
        "--recipe recipes/demo_cpu.yaml",
    ),
    "decode": Bench(
        "tokens a second in streams, verified, and by transformers",
        "armd_scale.bench.suites.decode:measure_decoding",
        {"--checkpoint": _CHECKPOINT, "--tokens": _number(256, "length of the text"), "--hf": _HF}
        | {"--runs": _number(5, "how often each is timed")},
        "--checkpoint runs/demo --tokens 256",
    ),
    "rounds": Bench(
        "where a round of decoding spends its time, as the text grows",
        "armd_scale.bench.suites.rounds:measure_rounds",
        {"--checkpoint": _CHECKPOINT, "--streams": _numbers(1, 4, summary="parallel streams")}
        | {"--after": _numbers(64, 256, 1024, summary="generated tokens before the rounds timed")}
        | {"--runs": _number(5, "texts of each")},
        "--checkpoint runs/demo --streams 1 4",
    ),
}
