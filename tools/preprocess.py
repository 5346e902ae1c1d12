"""Text into token shards: PREFIX.bin, PREFIX.idx, PREFIX.json and PREFIX.tokenizer/."""

import argparse
import signal

from armd_scale.data.indexed_reader import verify
from armd_scale.data.manifest import ShardIndex, existing_splits
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.merge import merge
from armd_scale.data.preprocess.options import PreprocessOptions
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.errors import run_command
from armd_scale.log import configure

_EXAMPLES = """\
examples:
  with a vocabulary of its own, trained on the corpus:
    python tools/preprocess.py --input corpus/ --output data/corpus --workers 8 \\
        --tokenizer train:sentencepiece:8000 --split 0.98,0.01,0.01
  with a Hugging Face tokenizer:
    python tools/preprocess.py --input 'web/**/*.jsonl.zst' --output data/web --workers 32 \\
        --tokenizer models/llama
  on two machines: the above with --shard 0/2 on one and --shard 1/2 on the other, then
    python tools/preprocess.py --output data/web \\
        --merge data/web.shard-0-of-2 data/web.shard-1-of-2
  are the files whole?
    python tools/preprocess.py --verify data/web

A command that was stopped continues when it is given again.
"""


def main() -> None:
    """Builds, merges or verifies shards."""
    parser = _parser()
    args = parser.parse_args()
    configure()
    # SIGTERM, as schedulers send it, leaves as Ctrl-C does: workers stopped, finished units kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.verify:
        _verify(args.verify)
    elif not args.output:
        parser.error("--output is required")
    elif args.merge:
        merge(args.merge, args.output, overwrite=args.overwrite)
    elif not (args.input and args.tokenizer):
        parser.error("--input and --tokenizer are required")
    else:
        preprocess(_options(args))


def _verify(prefix: str) -> None:
    for pair in existing_splits(prefix).values():
        manifest = verify(pair)
        print(f"{pair}: ok" + ("" if manifest else " (no manifest, so without checksums)"))


def _options(args: argparse.Namespace) -> PreprocessOptions:
    return PreprocessOptions(
        inputs=tuple(args.input),
        output=args.output,
        tokenizer=args.tokenizer,
        workers=args.workers,
        reading=ReaderOptions(
            text_key=args.text_key,
            document_unit=args.text_documents,
            max_document_bytes=args.document_bytes,
        ),
        split=args.split,
        shard=args.shard,
        on_error=args.on_error,
        append_eod=not args.no_eod,
        overwrite=args.overwrite,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, ReaderOptions()
    add("--input", nargs="+", metavar="PATH", help=_HELP["input"])
    add("--output", metavar="PREFIX", help="where the files go")
    add("--tokenizer", metavar="SPEC", help=_HELP["tokenizer"])
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--text-key", default=default.text_key, metavar="KEY", help=_HELP["text_key"])
    add("--split", type=_fractions, default=(), metavar="F,F[,F]", help=_HELP["split"])
    add("--shard", type=_part, metavar="i/n", help=_HELP["shard"])
    add("--on-error", choices=("skip", "refuse"), default="skip", help=_HELP["on_error"])
    add("--text-documents", choices=("file", "line", "paragraph"), default="file",
        help="what a document of a text file is (default: file)")  # fmt: skip
    add("--document-bytes", type=int, default=default.max_document_bytes, metavar="BYTES",
        help="cut longer documents into several, at line ends (default: %(default)s)")  # fmt: skip
    add("--no-eod", action="store_true", help="do not end documents with the tokenizer's EOS")
    add("--overwrite", action="store_true", help="replace files and unfinished work at PREFIX")
    add("--merge", nargs="+", metavar="PREFIX", help="join the shards of --shard into --output")
    add("--verify", metavar="PREFIX", help="find truncation and bit rot")
    return parser


_HELP = {
    "input": ".txt .jsonl (.gz .zst) .parquet .arrow files, folders, globs, HF dataset names",
    "tokenizer": "sentencepiece model, HF tokenizer folder, or train:sentencepiece:VOCAB",
    "text_key": "key or column of the text (default: text)",
    "split": "fractions of PREFIX_train, _valid and _test; a document's text decides its side",
    "shard": "do the i-th of n parts, i from 0; all parts are then joined by --merge",
    "on_error": "count and name what cannot be read and go on (default), or stop at the first",
}


def _fractions(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _part(text: str) -> ShardIndex:
    index, _, count = text.partition("/")
    return ShardIndex(int(index), int(count))


if __name__ == "__main__":
    run_command(main)
