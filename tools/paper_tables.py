"""Print the paper's tables for given checkpoints, with the published rows beside theirs."""

import argparse
from typing import get_args

from armd_scale.errors import exit_on_interrupt, refuse_renamed_options, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path, path_text, positive_int
    from armd_scale.eval.paper.cli import PaperTableRequest, TableName, run_paper_table
    from armd_scale.log import configure
    from armd_scale.parallel.environment import read_environment

_EXAMPLE = """examples:
  python tools/paper_tables.py zero-shot --checkpoint runs/a --text PTB=ptb.test.txt --plot t1.svg
  python tools/paper_tables.py generative --checkpoint runs/armd --eval-model models/gpt2-large
  python tools/paper_tables.py generative --texts samples.jsonl --eval-model models/gpt2-large
  python tools/paper_tables.py ablation-rho --checkpoint runs/rho8 runs/rho32 --data web_valid"""


def main() -> None:
    """Measure, print the table, and write the requested files."""
    request = PaperTableRequest(**vars(_parser().parse_args()))
    configure()
    run_paper_table(request, read_environment())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="table", required=True)
    # Fields of PaperTableRequest that a table has no option for keep their defaults.
    for name in get_args(TableName):
        subparser = subparsers.add_parser(name)
        add = subparser.add_argument
        add("--checkpoint", nargs="+", type=path_text, default=[],
            required=name != "generative", help="checkpoints or run folders")  # fmt: skip
        add("--markdown", type=path, metavar="FILE", help="write the table to this file")
        add("--plot", type=path, metavar="FILE", help="draw it to this file: .svg, .png or .pdf")
        refuse_renamed_options(subparser, {"--picture": "--plot"})
        if name == "zero-shot":
            add("--text", nargs="+", required=True, type=_named_path, metavar="NAME=FILE",
                help="benchmark texts")  # fmt: skip
        else:
            _add_sample_options(subparser, is_generative=name == "generative")
    return parser


def _named_path(text: str) -> str:
    name, equals, file = text.partition("=")
    return f"{name}={path_text(file)}" if equals else text


def _add_sample_options(subparser: argparse.ArgumentParser, *, is_generative: bool) -> None:
    add = subparser.add_argument
    add("--samples", type=positive_int, metavar="N", help="number of texts (16) or windows (all)")
    if not is_generative:
        add("--data", required=True, type=path_text, metavar="PREFIX", help="held-out shards")
        return
    add("--texts", nargs="+", type=path, default=[], metavar="FILE",
        help="texts that tools/generate.py --json wrote: one row per file")  # fmt: skip
    add("--eval-model", type=path, required=True, metavar="FOLDER",
        help="Hugging Face folder of the AR model that scores the texts")  # fmt: skip
    add("--tokens", type=positive_int, default=256, metavar="N", help="length of texts (256)")
    refuse_renamed_options(subparser, {"--judge": "--eval-model"})


if __name__ == "__main__":
    run_command(main)
