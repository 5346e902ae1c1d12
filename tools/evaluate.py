"""Evaluate a checkpoint or a Hugging Face folder: likelihood under an order, or a task."""

import argparse

from armd_scale.errors import exit_on_interrupt, refuse_renamed_options, run_command

with exit_on_interrupt():
    from armd_scale.arguments import integer, number, path, path_text, positive_int
    from armd_scale.eval.detokenizers import DETOKENIZERS
    from armd_scale.eval.evaluate import evaluate_checkpoint
    from armd_scale.eval.request import EvalRequest
    from armd_scale.eval.tasks.registry import TASKS
    from armd_scale.log import configure
    from armd_scale.order.spec import SPEC_SYNTAX
    from armd_scale.parallel.environment import read_environment

_EXAMPLE = """examples:
  python tools/evaluate.py --checkpoint runs/demo --data data/web_valid --order strided:4
  python tools/evaluate.py --checkpoint runs/demo --text ptb.test.txt --detokenizer ptb --order l2r
  python tools/evaluate.py --checkpoint runs/demo --task infill stories.jsonl --order random
  torchrun --nproc-per-node 8 tools/evaluate.py ...    (the processes share the windows)"""


def main() -> None:
    """Evaluate, write the requested files, and print one line."""
    # Every option has the name of a field; a new option needs both.
    request = EvalRequest(**vars(_parser().parse_args()))
    configure()
    environment = read_environment()
    result = evaluate_checkpoint(request, environment)
    if environment.is_rank0:
        print(result.format_line())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    checkpoint = "a checkpoint, or a run folder: its newest checkpoint"
    model.add_argument("--checkpoint", type=path_text, help=checkpoint)
    model.add_argument("--hf", type=path, metavar="FOLDER", help="Hugging Face folder (ARMD or AR)")
    add(
        "--data", type=path_text, metavar="PREFIX", help="held-out shards PREFIX.bin and PREFIX.idx"
    )
    add("--text", type=path, metavar="FILE", help="a text file instead, scored as a whole")
    add("--detokenizer", default="none", metavar="NAME", help=" | ".join(DETOKENIZERS))
    # From the registry, so that a new task needs no change here.
    tasks = "; ".join(task.help for task in TASKS.values())
    add("--task", nargs=2, type=path_text, metavar=("NAME", "FILE"),
        help=f"JSON lines instead: {tasks}")  # fmt: skip
    add("--order", required=True, metavar="SPEC", help=" | ".join(SPEC_SYNTAX.values()))
    add("--orders-per-sample", type=positive_int, default=1, metavar="K",
        help="number of orders drawn per window (default: 1)")  # fmt: skip
    add("--stride", type=positive_int, metavar="N",
        help="stride of overlapping windows; requires --order l2r")  # fmt: skip
    add("--samples", type=positive_int, metavar="N", help="windows or examples (default: all)")
    add("--seq-length", type=positive_int, metavar="N",
        help="targets per window (default: as in training)")  # fmt: skip
    add("--micro-batch", type=positive_int, metavar="N",
        help="windows per forward pass (default: as in training)")  # fmt: skip
    add("--seed", type=integer, metavar="K", help="of orders and sampling (default: the run's)")
    add("--temperature", type=number, metavar="T", help="of sampling, 0 for greedy (default: 1)")
    add("--json", type=path, metavar="FILE", help="write the figures to this file")
    add("--dump", type=path, metavar="FILE", help="write every token's log-probability to this")
    refuse_renamed_options(parser, {"--detokenise": "--detokenizer"})
    return parser


if __name__ == "__main__":
    run_command(main)
