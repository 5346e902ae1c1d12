"""Train a small Llama with `transformers` on a recipe's data: a pretrained model to convert."""

import argparse

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path, path_text, positive_int, positive_number
    from armd_scale.config.load import load_recipe
    from armd_scale.experiments.adaptation.train_llama import train_llama, write_byte_tokenizer
    from armd_scale.log import configure

_EXAMPLE = """example:
  python tools/train_llama.py --tokenizer runs/adapt/tokenizer
  python tools/preprocess.py --tokenizer runs/adapt/tokenizer --output runs/adapt/data/bytes ...
  python tools/train_llama.py --tokenizer runs/adapt/tokenizer --recipe recipes/adapt_cpu.yaml \\
      --output runs/adapt/llama --steps 600 --learning-rate 2e-3"""


def main() -> None:
    """Write the byte tokenizer if it does not exist; train if there is a recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    tokenizer = "HF folder; a byte tokenizer is written if it does not exist"
    add("--tokenizer", type=path, required=True, help=tokenizer)
    add("--recipe", type=path_text, help="defines size, data, seed and batch size")
    add("--output", type=path, help="HF folder to write")
    add("--steps", type=positive_int, default=600, help="optimizer steps (default: %(default)s)")
    rate = "peak learning rate (default: %(default)s)"
    add("--learning-rate", type=positive_number, default=2e-3, help=rate)
    args = parser.parse_args()
    configure()
    if not args.tokenizer.exists():
        write_byte_tokenizer(args.tokenizer)
    # The first of two calls: preprocessing needs the tokenizer, and training the shards.
    if args.recipe is None:
        return
    if args.output is None:
        parser.error("--output is required with --recipe")
    train_llama(
        load_recipe(args.recipe),
        args.output,
        tokenizer=args.tokenizer,
        steps=args.steps,
        learning_rate=args.learning_rate,
    )


if __name__ == "__main__":
    run_command(main)
