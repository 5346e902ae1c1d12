"""The paper's tables for checkpoints, its published rows beside theirs."""

import argparse
from pathlib import Path

from armd_scale.errors import run_command
from armd_scale.eval.paper.rows import ablation_row, benchmark_texts, generative_rows, zero_shot_row
from armd_scale.eval.paper.tables import ablation, generative, zero_shot
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.files import atomic_write_text, require_parent_dir
from armd_scale.log import configure
from armd_scale.parallel.environment import read_environment

_EXAMPLE = """examples:
  python tools/paper_tables.py zero-shot --checkpoint runs/armd --text PTB=ptb.test.txt --picture t1.svg
  python tools/paper_tables.py generative --checkpoint runs/armd --judge models/gpt2-large
  python tools/paper_tables.py ablation-rho --checkpoint runs/rho16 runs/rho32 --data corpus/valid"""


def main() -> None:
    """Measures, prints the table, and writes the files that were asked for."""
    args = _parser().parse_args()
    configure()
    here = read_environment()
    require_parent_dir(args.markdown, "--markdown")
    require_parent_dir(args.picture, "--picture")
    if args.table == "zero-shot":
        texts = benchmark_texts(args.text)
        table = zero_shot([zero_shot_row(c, texts, here) for c in args.checkpoint])
    elif args.table == "generative":
        judge = ReferenceLM(args.judge, device=here.device)
        sizes = {"num_samples": args.samples or 16, "num_tokens": args.tokens}
        table = generative(
            [row for c in args.checkpoint for row in generative_rows(c, judge, here, **sizes)]
        )
    else:
        how = {"samples": args.samples, "of": args.table}
        rows = [ablation_row(c, args.data, here, **how) for c in args.checkpoint]
        table = ablation(f"Held-out perplexity, {args.table}", rows)
    if args.markdown is not None:
        atomic_write_text(args.markdown, table.markdown())
    if args.picture is not None:
        table.draw(args.picture)
    print(table.markdown(), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = parser.add_subparsers(dest="table", required=True)
    for name in ("zero-shot", "generative", "ablation-two-stream", "ablation-rho"):
        add = tables.add_parser(name).add_argument
        add("--checkpoint", nargs="+", required=True, help="checkpoints or run folders")
        add("--markdown", type=Path, metavar="FILE", help="where to write the table")
        add("--picture", type=Path, metavar="FILE", help="where to draw it: .svg, .png or .pdf")
        if name == "zero-shot":
            add("--text", nargs="+", required=True, metavar="NAME=FILE", help="benchmark texts")
            continue
        add("--samples", type=int, metavar="N", help="texts (16), or windows (all) to measure")
        if name == "generative":
            add("--judge", type=Path, required=True, help="Hugging Face folder of an AR model")
            add("--tokens", type=int, default=256, metavar="N", help="length of texts (256)")
        else:
            add("--data", required=True, metavar="PREFIX", help="held-out shards")
    return parser


if __name__ == "__main__":
    run_command(main)
