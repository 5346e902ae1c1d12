"""Print the paper's tables for given checkpoints, with the published rows beside theirs."""

import argparse
from pathlib import Path

from armd_scale.errors import ArmdError, refuse_renamed_options, run_command
from armd_scale.eval.paper import rows, tables
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.files import atomic_write_text, require_parent_dir
from armd_scale.log import configure
from armd_scale.parallel.environment import DistributedEnv, read_environment

_EXAMPLE = """examples:
  python tools/paper_tables.py zero-shot --checkpoint runs/a --text PTB=ptb.test.txt --plot t1.svg
  python tools/paper_tables.py generative --checkpoint runs/armd --eval-model models/gpt2-large
  python tools/paper_tables.py generative --texts samples.jsonl --eval-model models/gpt2-large
  python tools/paper_tables.py ablation-rho --checkpoint runs/rho8 runs/rho32 --data corpus/valid"""


def main() -> None:
    """Measure, print the table, and write the requested files."""
    args = _parser().parse_args()
    configure()
    require_parent_dir(args.markdown, "--markdown")
    require_parent_dir(args.plot, "--plot")
    tables.require_image_suffix(args.plot, "--plot")
    table = args.measure(args, read_environment())
    if args.markdown is not None:
        atomic_write_text(args.markdown, table.markdown())
    if args.plot is not None:
        table.plot(args.plot)
    print(table.markdown(), end="")


def _zero_shot(args: argparse.Namespace, here: DistributedEnv) -> tables.Table:
    texts = rows.parse_benchmark_texts(args.text)
    return tables.zero_shot_table([rows.zero_shot_row(c, texts, here) for c in args.checkpoint])


def _generative(args: argparse.Namespace, here: DistributedEnv) -> tables.Table:
    if not args.checkpoint and not args.texts:
        raise ArmdError("the generative table needs --checkpoint or --texts: give at least one")
    reference_lm = ReferenceLM(args.eval_model, device=here.device)
    measured = [rows.texts_row(path, reference_lm) for path in args.texts]
    for checkpoint in args.checkpoint:
        measured += rows.generative_rows(
            checkpoint, reference_lm, here, num_samples=args.samples or 16, num_tokens=args.tokens
        )
    return tables.generative_table(measured)


def _ablation(args: argparse.Namespace, here: DistributedEnv) -> tables.Table:
    options = {"samples": args.samples, "ablation": args.table}
    measured = [rows.ablation_row(c, args.data, here, **options) for c in args.checkpoint]
    return tables.ablation_table(f"Held-out perplexity, {args.table}", measured)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="table", required=True)
    measures = {"zero-shot": _zero_shot, "generative": _generative}
    measures |= {"ablation-two-stream": _ablation, "ablation-rho": _ablation}
    for name, measure in measures.items():
        subparser = subparsers.add_parser(name)
        subparser.set_defaults(measure=measure)
        add = subparser.add_argument
        add("--checkpoint", nargs="+", required=name != "generative", default=[],
            help="checkpoints or run folders")  # fmt: skip
        add("--markdown", type=Path, metavar="FILE", help="write the table to this file")
        add("--plot", type=Path, metavar="FILE", help="draw it to this file: .svg, .png or .pdf")
        refuse_renamed_options(subparser, {"--picture": "--plot"})
        if name == "zero-shot":
            add("--text", nargs="+", required=True, metavar="NAME=FILE", help="benchmark texts")
            continue
        add("--samples", type=int, metavar="N", help="number of texts (16) or of windows (all)")
        if name == "generative":
            add("--texts", nargs="+", type=Path, default=[], metavar="FILE",
                help="texts that tools/generate.py --json wrote: one row per file")  # fmt: skip
            add("--eval-model", type=Path, required=True, metavar="FOLDER",
                help="Hugging Face folder of the AR model that scores the texts")  # fmt: skip
            add("--tokens", type=int, default=256, metavar="N", help="length of texts (256)")
            refuse_renamed_options(subparser, {"--judge": "--eval-model"})
        else:
            add("--data", required=True, metavar="PREFIX", help="held-out shards")
    return parser


if __name__ == "__main__":
    run_command(main)
