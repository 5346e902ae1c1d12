"""Preprocess text into token shards: PREFIX.bin, PREFIX.idx, PREFIX.json and PREFIX.tokenizer/."""

import argparse
import signal
import sys

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.data.indexed_reader import verify
    from armd_scale.data.manifest import existing_splits
    from armd_scale.data.preprocess.arguments import add_arguments, read_options
    from armd_scale.data.preprocess.merge import merge
    from armd_scale.data.preprocess.pipeline import preprocess
    from armd_scale.log import configure

_EXAMPLES = """\
examples:
  train a vocabulary on the corpus, and split it into train, valid and test:
    python tools/preprocess.py --input corpus/ --output data/corpus --workers 8 \\
        --tokenizer train:sentencepiece:8000 --split 0.98,0.01,0.01
  with a Hugging Face tokenizer:
    python tools/preprocess.py --input 'web/**/*.jsonl.zst' --output data/web --workers 32 \\
        --tokenizer models/llama
  on two machines: run the above with --shard 0/2 on one and --shard 1/2 on the other, then
    python tools/preprocess.py --output data/web \\
        --merge data/web.shard-0-of-2 data/web.shard-1-of-2
  check the files for damage:
    python tools/preprocess.py --verify data/web

A command that was stopped continues when it is run again.
"""


def main() -> None:
    """Build, merge or verify token shards."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args()
    configure()
    # Handle the SIGTERM of a scheduler like Ctrl-C: stop the workers and keep the finished units.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.verify:
        _verify(args.verify)
    # Not `required=True`: which options are needed depends on what is done. --verify takes none.
    elif not args.output:
        parser.error("--output is required")
    elif args.merge:
        merge(args.merge, args.output, overwrite=args.overwrite)
    elif not (args.input and args.tokenizer):
        parser.error("--input and --tokenizer are required")
    else:
        preprocess(read_options(args))


def _verify(prefix: str) -> None:
    # A prefix may have bytes that are no characters, which stdout would not print.
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    for dataset in existing_splits(prefix).values():
        manifest = verify(dataset)
        print(f"{dataset}: ok" + ("" if manifest else " (no manifest, so checksums not checked)"))


if __name__ == "__main__":
    run_command(main)
