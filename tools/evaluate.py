"""Likelihood of held-out text under an order, or a task, by a checkpoint or Hugging Face folder."""

import argparse
from pathlib import Path

from armd_scale.errors import run_command
from armd_scale.eval.detokenizers import DETOKENIZERS
from armd_scale.eval.evaluate import EvalRequest, evaluate_checkpoint
from armd_scale.eval.output import summary
from armd_scale.log import configure
from armd_scale.order.spec import SPEC_SYNTAX
from armd_scale.parallel.environment import read_environment

_TASK_HELP = (
    'JSON lines instead: lambada {"text"}: accuracy on last words; infill {"before", "middle", '
    '"after"}: ROUGE-1, -2 and -L of what --order generates between before and after, in as many '
    "tokens as middle has, against middle"
)
_EXAMPLE = """examples:
  python tools/evaluate.py --checkpoint runs/demo --data corpus/valid --order strided:4
  python tools/evaluate.py --checkpoint runs/demo --task infill stories.jsonl --order random
  torchrun --nproc-per-node 8 tools/evaluate.py ...    (the processes share the windows)"""


def main() -> None:
    """Evaluates, writes the files that were asked for, and prints one line."""
    request = EvalRequest(**vars(_parser().parse_args()))
    configure()
    environment = read_environment()
    found = evaluate_checkpoint(request, environment)
    if environment.is_rank0:
        print(summary(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", help="a checkpoint, or a run folder: its newest one")
    which.add_argument("--hf", type=Path, metavar="FOLDER", help="an ARMD's or an AR model's")
    add("--data", metavar="PREFIX", help="of PREFIX.bin and PREFIX.idx")
    add("--text", type=Path, metavar="FILE", help="a text file instead, all of it scored")
    add("--detokenise", default="none", metavar="NAME", help=" | ".join(DETOKENIZERS))
    add("--task", nargs=2, metavar=("NAME", "FILE"), help=_TASK_HELP)
    add("--order", required=True, metavar="SPEC", help=" | ".join(SPEC_SYNTAX.values()))
    add("--orders-per-sample", type=_positive, default=1, metavar="K", help="draws a window (1)")
    add("--stride", type=_positive, metavar="N", help="of overlapping windows, for l2r alone")
    add("--samples", type=_positive, metavar="N", help="windows or passages (default: all)")
    add("--seq-length", type=_positive, metavar="N", help="targets of a window (default: trained)")
    add("--micro-batch", type=_positive, metavar="N", help="windows at a time (default: trained)")
    add("--seed", type=int, metavar="K", help="of drawn orders and fillings (default: the run's)")
    add("--temperature", type=float, metavar="T", help="of fillings, 0 is greedy (default: 1)")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    add("--dump", type=Path, metavar="FILE", help="where to write every token's log-probability")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run_command(main)
