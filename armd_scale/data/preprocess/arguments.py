"""Command-line options of preprocessing."""

import argparse
from typing import get_args

from armd_scale.arguments import path_text
from armd_scale.data.manifest import ShardIndex
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.encode_job import OnError
from armd_scale.data.preprocess.options import PreprocessOptions
from armd_scale.data.tokenizer import SpecialTokens
from armd_scale.errors import CorpusError, refuse_renamed_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all options of tools/preprocess.py to a parser."""
    _add_input_arguments(parser)
    _add_output_arguments(parser)
    other = parser.add_argument_group("instead of reading --input")
    other.add_argument(
        "--merge",
        nargs="+",
        type=path_text,
        metavar="PREFIX",
        help="join the shards of --shard into --output",
    )
    other.add_argument(
        "--verify",
        type=path_text,
        metavar="PREFIX",
        help="check for truncation and changed bits",
    )
    refuse_renamed_options(
        parser,
        {"--text-documents": "--document-unit", "--document-bytes": "--max-document-bytes"},
    )


def read_options(args: argparse.Namespace) -> PreprocessOptions:
    """Return the options of a run from the parsed arguments."""
    return PreprocessOptions(
        inputs=tuple(args.input),
        output=args.output,
        tokenizer=args.tokenizer,
        workers=args.workers,
        reader=ReaderOptions(
            text_key=args.text_key,
            document_unit=args.document_unit,
            max_document_bytes=args.max_document_bytes,
        ),
        split=args.split,
        shard=args.shard,
        input_split=args.input_split,
        on_error=args.on_error,
        max_skipped=args.max_skipped,
        special_tokens=args.special_tokens,
        prepend_bos=args.prepend_bos,
        append_eod=not args.no_eod,
        overwrite=args.overwrite,
    )


def _add_input_arguments(parser: argparse.ArgumentParser) -> None:
    add, defaults = parser.add_argument_group("input").add_argument, ReaderOptions()
    add(
        "--input",
        nargs="+",
        type=path_text,
        metavar="PATH",
        help=".txt .jsonl .csv .tsv (.gz .zst .bz2 .xz) .parquet .arrow files, folders, globs, HF "
        "dataset names; in folders hidden files are ignored, and what lies beside a dataset",
    )
    add(
        "--input-split",
        default="",
        metavar="NAME",
        help="which split to read of a folder that holds several (train, test), or all",
    )
    add(
        "--text-key",
        default=defaults.text_key,
        metavar="KEY",
        help="JSON key or column that holds the text (default: %(default)s)",
    )
    add(
        "--document-unit",
        choices=("file", "line", "paragraph"),
        default=defaults.document_unit,
        help="what one document of a text file is (default: %(default)s)",
    )
    add(
        "--max-document-bytes",
        type=int,
        default=defaults.max_document_bytes,
        metavar="BYTES",
        help="encode longer documents in chunks, which end at line ends (default: %(default)s)",
    )
    add(
        "--on-error",
        type=_on_error,
        choices=get_args(OnError),
        default="skip-documents",
        help="skip-documents (default): skip and count documents that are invalid, stop at a file "
        "that cannot be read; skip: skip such files too; fail: stop at either",
    )
    add(
        "--max-skipped",
        type=float,
        default=PreprocessOptions.max_skipped,
        metavar="FRACTION",
        help="stop without a result if a larger share of the documents was skipped, also with "
        "--on-error skip, where (the rest of) a file counts as one document; with --shard, of the "
        "shard's documents (default: %(default)s)",
    )


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--output", type=path_text, metavar="PREFIX", help="prefix of the files to write")
    add(
        "--tokenizer",
        type=path_text,
        metavar="SPEC",
        help="sentencepiece model, HF tokenizer folder, or train:sentencepiece:VOCAB",
    )
    add("--workers", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    add(
        "--split",
        type=_fractions,
        default=(),
        metavar="F,F[,F]",
        help="fractions of PREFIX_train, _valid and _test; a document's text decides its split",
    )
    add(
        "--shard",
        type=_shard_index,
        metavar="i/n",
        help="encode only shard i of n, i from 0; --merge joins all shards",
    )
    add(
        "--special-tokens",
        choices=get_args(SpecialTokens),
        default=PreprocessOptions.special_tokens,
        help="what a special token that is written out in a text becomes, such as <|endoftext|>: "
        "ordinary tokens of its text, or its id (default: %(default)s)",
    )
    add(
        "--prepend-bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="start every document with BOS (default: as the tokenizer starts texts); models that "
        "are trained on the shards start texts in the same way",
    )
    add("--no-eod", action="store_true", help="do not append the tokenizer's EOS to documents")
    add("--overwrite", action="store_true", help="replace files and unfinished work at PREFIX")


def _on_error(text: str) -> str:
    # argparse compares with `choices` after this, so only the former value is handled here.
    if text == "refuse":
        raise CorpusError("--on-error refuse has been renamed: use --on-error fail")
    return text


def _fractions(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _shard_index(text: str) -> ShardIndex:
    index, _, count = text.partition("/")
    return ShardIndex(int(index), int(count))
