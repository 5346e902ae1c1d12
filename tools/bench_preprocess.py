"""Time tools/preprocess.py on a JSON lines file, against encoding alone and another command."""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from tokenizers import Tokenizer

    from armd_scale.arguments import path_text, positive_int

_EXAMPLE = """\
example:
  python tools/bench_preprocess.py --input corpus.jsonl --tokenizer models/gpt2 --workers 2 \\
      --against 'python Megatron-LM/tools/preprocess_data.py --input corpus.jsonl ...'
"""


def main() -> None:
    """Run all of them in turn, several times, and print the median seconds as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, type=path_text, help="a .jsonl file, key text")
    parser.add_argument(
        "--tokenizer", required=True, type=path_text, help="tokenizer.json's folder"
    )
    parser.add_argument("--workers", type=positive_int, default=2, help="processes (default: 2)")
    parser.add_argument("--runs", type=positive_int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--against", metavar="COMMAND", help="another command to time")
    args = parser.parse_args()
    with Path(args.input).open(encoding="utf-8") as lines:
        # Read before the clock starts: encoding alone is the least that preprocessing can take.
        texts = [json.loads(line)["text"] for line in lines]
    tokenizer = Tokenizer.from_file(f"{args.tokenizer}/tokenizer.json")
    # Commands include the start of Python and the import of their libraries, the encoder does not.
    contestants: dict[str, Callable[[], object]] = {
        "preprocess": lambda: _preprocess(args.input, args.tokenizer, args.workers),
        "encode_batch_fast": lambda: tokenizer.encode_batch_fast(texts),
    }
    if args.against:
        contestants["against"] = lambda: _run(shlex.split(args.against))
    # In turn, so that a change in the load of the machine affects all of them alike.
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.runs):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            seconds[name].append(round(time.perf_counter() - start, 2))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # 10^6 bytes of JSON lines, keys and quotes included.
    megabytes = Path(args.input).stat().st_size / 1e6
    print(json.dumps({"megabytes": megabytes, "median_seconds": medians, "seconds": seconds}))


def _preprocess(path: str, tokenizer: str, workers: int) -> None:
    tool = str(Path(__file__).with_name("preprocess.py"))
    with tempfile.TemporaryDirectory() as folder:
        files = ["--input", path, "--output", f"{folder}/out", "--tokenizer", tokenizer]
        # A new folder each time, because preprocessing does not replace an existing result.
        _run([sys.executable, tool, *files, "--workers", str(workers)])


def _run(command: list[str]) -> None:
    # Output is discarded, because printing to a terminal takes time. A failure raises: a command
    # that stops early would look fast.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    run_command(main)
