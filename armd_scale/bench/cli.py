"""Registry of the benchmarks: what each one measures, its function, options and an example.

To add a benchmark, write armd_scale/bench/suites/NAME.py with a function that takes its options as
keyword arguments and returns rows, and add one entry to BENCHMARKS.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from armd_scale.arguments import path, path_text, positive_int, process_count
from armd_scale.bench.table import Row, markdown
from armd_scale.errors import refuse_renamed_options
from armd_scale.files import require_writable
from armd_scale.json_files import atomic_write_json
from armd_scale.parallel.environment import read_environment

RENAMED_OPTIONS = {
    "--shape": "--model-size",
    "--grows": "--vary",
    "--runs": "--repeats",
    "--after": "--context",
}


class Benchmark(NamedTuple):
    """A subcommand of tools/bench.py."""

    summary: str
    function: str
    """`module:name` of a function that takes the options and returns rows; imported on use."""
    options: Mapping[str, Mapping[str, Any]]
    """Keyword arguments of `add_argument` by flag."""
    example: str
    """Options to show in the help, after the name of the subcommand."""


def run_benchmark(args: argparse.Namespace) -> None:
    """Measure, print a table, and write the JSON file if there is one; only rank 0 prints.

    Args:
        args: parsed by `benchmark_parser`.

    Raises:
        ArmdError: the JSON file cannot be written, or the benchmark refuses its options.
    """
    options = vars(args).copy()
    # Without these two, the options are the keyword arguments of the benchmark's function.
    benchmark, file = BENCHMARKS[options.pop("benchmark")], options.pop("json")
    # A benchmark takes minutes, so the file is checked before it starts.
    require_writable(file, "--json")
    # Before the import of the benchmark: DeepSpeed chooses its accelerator while it is imported,
    # from a variable that read_environment sets.
    environment = read_environment()
    rows: list[Row] = resolve_name(benchmark.function)(**options)
    if not environment.is_rank0:
        return
    if file is not None:
        atomic_write_json(file, rows, indent=2)
    print(markdown(rows))


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Build the parser: one subcommand per benchmark, with an example in its help."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        example = f"python tools/bench.py {name} {benchmark.example}"
        about = f"{benchmark.summary}. Example: {example}"
        command = commands.add_parser(name, help=benchmark.summary, description=about)
        for flag, option in benchmark.options.items():
            command.add_argument(flag, **option)
        command.add_argument("--json", type=path, metavar="FILE", help="file for the figures")
        refuse_renamed_options(command, RENAMED_OPTIONS)
    return parser


def _existing_folder(text: str) -> Path:
    folder = path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"must be an existing folder (got {text!r})")
    return folder


def _existing_file(text: str) -> Path:
    file = path(text)
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"must be an existing file (got {text!r})")
    return file


def _int_option(default: int, summary: str) -> dict[str, Any]:
    help_text = f"{summary} (default: {default})"
    return {"type": positive_int, "default": default, "metavar": "N", "help": help_text}


def _int_list_option(*default: int, summary: str) -> dict[str, Any]:
    help_text = f"{summary} (default: {' '.join(map(str, default))})"
    # The default stays a tuple; values from the command line arrive as a list.
    return {**_int_option(1, summary), "nargs": "+", "default": default, "help": help_text}


def _path_option(kind: Any, metavar: str, summary: str, **options: Any) -> dict[str, Any]:
    return {"type": kind, "metavar": metavar, "help": summary, **options}


# Repeated here because importing the suites takes seconds; tests compare them with the suites.
MODEL_SIZES = ("small", "125m", "1b", "8b-layers")
VARIABLES = ("layers", "micro_batch", "seq_length", "accumulation", "stages")

_MODEL_SIZE = {"choices": MODEL_SIZES, "default": "small", "help": "model size (default: small)"}
_VARY = {"choices": VARIABLES, "nargs": "+", "default": VARIABLES, "help": "what to vary (all)"}
_CHECKPOINT = {
    "required": True,
    "type": path_text,
    "help": "checkpoint, or run folder (its newest checkpoint)",
}
_RECIPE = _path_option(_existing_file, "FILE", "recipe of a run whose shards exist", required=True)
_HF_FOLDER = _path_option(
    _existing_folder, "FOLDER", "the same weights, for `generate` of transformers"
)
_STORAGE_FOLDER = _path_option(
    _existing_folder, "FOLDER", "folder on the storage to measure (default: temporary)"
)
_PROFILE = {"action": "store_true", "help": "add the time shares of matmul and attention"}
# Odd numbers, so that a median is one of the measured times.
_REPEATS = {"--repeats": _int_option(7, "timed repeats of each case")}
_FIVE_REPEATS = {"--repeats": _int_option(5, "timed repeats of each case")}

BENCHMARKS = {
    "memory": Benchmark(
        "bytes per process under each ZeRO stage, compared with the ZeRO paper",
        "armd_scale.bench.suites.memory:measure_memory",
        {"--ranks": {**_int_option(4, "number of processes"), "type": process_count}},
        "--ranks 4 --json memory.json",
    ),
    "checkpoint": Benchmark(
        "training stall of a save, and bandwidth of save and load compared with dd",
        "armd_scale.bench.suites.checkpoint:measure_saves",
        {"--saves": _int_option(5, "saves of each kind"), "--folder": _STORAGE_FOLDER},
        "--saves 3 --folder /scratch",
    ),
    "step": Benchmark(
        "training step of ARMD, an AR model and two other AR implementations",
        "armd_scale.bench.suites.step:compare_steps",
        {"--model-size": _MODEL_SIZE, **_REPEATS, "--profile": _PROFILE},
        "--model-size small --repeats 7 --profile",
    ),
    "profile": Benchmark(
        "operators of a training step of ARMD, an AR model and two other AR implementations",
        "armd_scale.bench.suites.profile:profile_steps",
        {
            "--model-size": _MODEL_SIZE,
            "--steps": _int_option(3, "profiled steps of each network"),
            "--top": _int_option(6, "operators of each group to list"),
        },
        "--model-size small --json profile.json",
    ),
    "matmul": Benchmark(
        "FLOPs per second of square matrix products, and the peak that MFU is relative to",
        "armd_scale.bench.suites.matmul:measure_matmul",
        {**_REPEATS},
        "--repeats 7",
    ),
    "attention": Benchmark(
        "attention of both streams: folded into heads, with masks, and doubled",
        "armd_scale.bench.suites.attention:compare_attention",
        {**_REPEATS},
        "--repeats 7",
    ),
    "loss": Benchmark(
        "peak memory and time of the LM head with its loss: dense, in chunks, and this head",
        "armd_scale.bench.suites.lm_head:compare_heads",
        {**_FIVE_REPEATS},
        "--repeats 5 --json loss.json",
    ),
    "scaling": Benchmark(
        "step time against layers, micro-batch, sequence length, accumulation and stages",
        "armd_scale.bench.suites.scaling:measure_scaling",
        {"--vary": _VARY, **_FIVE_REPEATS},
        "--vary layers seq_length --repeats 5",
    ),
    "loading": Benchmark(
        "targets per second of the data loader, compared with training",
        "armd_scale.bench.suites.loading:compare_loading",
        {
            "--recipe": _RECIPE,
            "--seconds": _int_option(2, "length of each loader run"),
            **_FIVE_REPEATS,
        },
        "--recipe recipes/demo_cpu.yaml",
    ),
    "decode": Benchmark(
        "tokens per second of decoding in streams, with verified drafts, and by transformers",
        "armd_scale.bench.suites.decode:measure_decoding",
        {
            "--checkpoint": _CHECKPOINT,
            "--tokens": _int_option(256, "length of the text"),
            "--hf": _HF_FOLDER,
            **_FIVE_REPEATS,
        },
        "--checkpoint runs/demo --tokens 256",
    ),
    "rounds": Benchmark(
        "time of one decoding round by operator group, as the text gets longer",
        "armd_scale.bench.suites.rounds:measure_rounds",
        {
            "--checkpoint": _CHECKPOINT,
            "--streams": _int_list_option(1, 4, summary="numbers of streams"),
            "--context": _int_list_option(
                64, 256, 1024, summary="generated tokens before the timed rounds"
            ),
            "--repeats": _int_option(5, "texts of each case"),
        },
        "--checkpoint runs/demo --streams 1 4",
    ),
}  # fmt: skip
