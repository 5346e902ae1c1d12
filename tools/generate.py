"""Text from a checkpoint: one token at a time, several a round, or into the holes of a text.

Example: python tools/generate.py --checkpoint runs/demo --prompt "def main" --tokens 99 --streams 4
"""

import argparse
from pathlib import Path

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import run_command
from armd_scale.files import require_parent_dir
from armd_scale.generation import ConfidenceSchedule, Sampling, Strategy, generate_from_specs
from armd_scale.generation.cli import build_specs, check_layout, print_and_write
from armd_scale.generation.live_view import live_progress
from armd_scale.generation.text import JSON_HELP
from armd_scale.log import configure
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
STRATEGY = ("streams", "group", "random_order", "dynamic", "lossless")


def main() -> None:
    """Generates, prints, and writes the files."""
    args = _parser().parse_args()
    here = read_environment()
    configure()
    args.dynamic = args.dynamic and ConfidenceSchedule.parse(args.dynamic)
    strategy = Strategy(**{name: getattr(args, name) for name in STRATEGY})
    sampling = Sampling(**{name: getattr(args, name) for name in SAMPLING})
    check_layout(args.tp, here.world_size)
    require_parent_dir(args.json, "--json")
    require_parent_dir(args.html, "--html")
    checkpoint = open_checkpoint(args.checkpoint)
    folder = checkpoint.tokenizer_folder
    tokenizer = None if folder is None else load_tokenizer(folder)
    how = {"strategy": strategy, "sampling": sampling}
    asked = {"prompt": args.prompt, "holes": args.infill, "num_tokens": args.tokens}
    outlines = build_specs(**asked, **how, num_samples=args.num_samples, tokenizer=tokenizer)
    end = tokenizer.eod if tokenizer is not None and args.stop_at_end else None
    with process_groups(here, ParallelConfig(tensor=args.tp)) as groups:
        network = load_network(checkpoint, groups=groups, device=here.device)
        with live_progress(outlines, tokenizer, is_main=here.is_rank0) as on_round:
            made = generate_from_specs(network, outlines, **how, end=end, on_round=on_round)
    if here.is_rank0:
        print_and_write(made, tokenizer, records=args.json, replay=args.html)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint, or a run folder: its newest one")
    add("--prompt", metavar="TEXT", help="text to continue (default: a document's start)")
    add("--infill", metavar="TEXT", help="text with holes to fill: {{12}} is one of 12 tokens")
    add("--tokens", type=int, default=256, metavar="N", help="tokens to continue by (256)")
    add("--streams", type=int, default=1, metavar="S", help="segments generated side by side (1)")
    add("--group", type=int, metavar="s", help="neighbours generated together")
    add("--random-order", action="store_true", help="tokens, or groups of them, in random order")
    add("--dynamic", metavar="RULE:k", help="best k a round by confidence|entropy|margin|random")
    add("--lossless", type=int, metavar="k", help="up to k a round, samples exactly as one by one")
    add("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (1)")
    add("--top-k", type=int, metavar="K", help="draw among the K most likely tokens (all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="... that reach probability P (1)")
    add("--min-p", type=float, default=0.0, metavar="P", help="... of P times the largest (0)")
    add(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="for tokens in sight (1)"
    )
    add("--seed", type=int, default=0, metavar="K", help="seed of the draws (0)")
    add("--num-samples", type=int, default=1, metavar="n", help="texts to generate (1)")
    add("--stop-at-end", action="store_true", help="end texts at their first end of a document")
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel processes, of torchrun (1)")
    add("--json", type=Path, metavar="FILE", help=JSON_HELP)
    add("--html", type=Path, metavar="FILE", help="page that replays in which order tokens landed")
    return parser


if __name__ == "__main__":
    run_command(main)
