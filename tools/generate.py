"""Text from a checkpoint, left to right or in parallel streams.

Example: python tools/generate.py --checkpoint runs/demo --prompt "def main" --tokens 99 --streams 4
"""

import argparse
from pathlib import Path

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.tokenize import load_tokenizer
from armd_scale.errors import run_command
from armd_scale.log import Track, configure
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.groups import process_groups
from armd_scale.sample import Sampling, complete, continuation
from armd_scale.sample.text import JSON_HELP, opening_tokens, text_records, write_records


def main() -> None:
    """Generates, prints, and writes the JSON file."""
    args = _parser().parse_args()
    configure()
    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    checkpoint = open_checkpoint(args.checkpoint)
    folder = checkpoint.tokenizer_folder
    tokenizer = None if folder is None else load_tokenizer(folder)
    opening = opening_tokens(args.prompt, tokenizer)
    outline = continuation(opening, num_tokens=args.tokens, streams=args.streams)
    outlines = [outline] * args.num_samples
    here = read_environment()
    with process_groups(here, ParallelConfig()) as groups, Track("generating", args.tokens) as bar:
        network = load_network(checkpoint, groups=groups, device=here.device)
        made = complete(network, outlines, sampling=sampling, on_round=bar.advance)
    records = text_records(made, tokenizer, cut_at_end=args.cut_at_end)
    if args.json is not None:
        write_records(args.json, records)
    for record in records:
        print(f"{record.text}\n[unigram entropy {record.entropy_bits:.2f} bits]\n")
    print(f"{made.rounds} rounds, {made.seconds:.2f} s, {made.tokens_per_second:.1f} tokens/s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint, or a run folder: its newest one")
    add("--prompt", metavar="TEXT", help="text to continue (default: a document's start)")
    add("--tokens", type=int, default=256, metavar="N", help="tokens to generate (256)")
    add("--streams", type=int, default=1, metavar="S", help="segments generated side by side (1)")
    add("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (1)")
    add("--top-k", type=int, metavar="K", help="draw among the K most likely tokens (all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="... that reach probability P (1)")
    add("--seed", type=int, default=0, metavar="K", help="seed of the draws (0)")
    add("--num-samples", type=int, default=1, metavar="n", help="texts to generate (1)")
    add("--cut-at-end", action="store_true", help="end texts at their first end of a document")
    add("--json", type=Path, metavar="FILE", help=JSON_HELP)
    return parser


if __name__ == "__main__":
    run_command(main)
