"""Generate text: one token at a time, several tokens per round, or into the holes of a text.

Example: python tools/generate.py --checkpoint runs/demo --prompt "def main" --tokens 99 --streams 4
"""

import argparse

from armd_scale.errors import exit_on_interrupt, refuse_renamed_options, run_command

with exit_on_interrupt():
    import torch

    from armd_scale.arguments import integer, number, path, path_text
    from armd_scale.checkpoint.pretrained import open_model
    from armd_scale.config.schema import ParallelConfig
    from armd_scale.generation.cli import GenerateRequest, generate_from_request, print_and_write
    from armd_scale.generation.text import JSON_HELP
    from armd_scale.log import configure
    from armd_scale.parallel.environment import read_environment
    from armd_scale.parallel.process_groups import process_groups

RENAMED = {
    "--lossless": "--speculative",
    "--stop-at-end": "--stop-at-eos",
    "--html": "--replay-html",
}


def main() -> None:
    """Generate samples, write the requested files, and print the texts."""
    options = vars(_parser().parse_args())
    env = read_environment()
    configure()
    source, hf = options.pop("checkpoint"), options.pop("hf")
    request = GenerateRequest(**options)
    # Everything that can be refused is checked first: loading the weights of a large model takes
    # minutes.
    request.check(env.world_size)
    model = open_model(source or hf)
    template = request.encode_text(model.tokenizer)
    rules = request.rules_for(model.tokenizer, is_chat_model=model.is_chat_model)
    specs = request.build_specs(template)
    with process_groups(env, ParallelConfig(tensor=request.tp)) as groups:
        # float32 whatever the model was trained in: bf16 rounding would change sampled tokens.
        network = model.load_network(groups=groups, device=env.device, dtype=torch.float32)
        output = generate_from_request(request, network, specs, rules, is_rank0=env.is_rank0)
    if env.is_rank0:
        print_and_write(request, output, template, rules)
    if output.is_interrupted:
        raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    checkpoint = "a checkpoint, or a run folder (its newest one)"
    model.add_argument("--checkpoint", type=path_text, help=checkpoint)
    hf = "a Hugging Face folder of an ARMD or AR model"
    model.add_argument("--hf", type=path_text, metavar="FOLDER", help=hf)
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="text to continue (default: start a text)")
    add("--infill", metavar="TEXT", help="text with holes to fill: {{12}} stands for 12 tokens, "
        r"and \{{ for the braces themselves")  # fmt: skip
    add("--tokens", type=integer, default=256, metavar="N", help="tokens to generate (256)")
    add("--streams", type=integer, default=1, metavar="S", help="segments written in parallel (1)")
    add("--group", type=integer, metavar="s", help="neighboring tokens generated together")
    add("--random-order", action="store_true", help="generate tokens, or groups, in random order")
    add("--dynamic", metavar="RULE:k", help="best k per round by confidence|entropy|margin|random")
    add("--speculative", type=integer, metavar="k", help="speculative decoding with up to k tokens"
        " per round (same distribution as one at a time)")  # fmt: skip
    add("--temperature", type=number, default=1.0, metavar="T", help="0 is greedy (1)")
    add("--top-k", type=integer, metavar="K", help="sample among the K most likely tokens (all)")
    add("--top-p", type=number, default=1.0, metavar="P", help="... that reach probability P (1)")
    add("--min-p", type=number, default=0.0, metavar="P", help="... of P times the largest (0)")
    add("--repetition-penalty", type=number, default=1.0, metavar="R", help="for seen tokens (1)")
    add("--seed", type=integer, default=0, metavar="K", help="seed of the random numbers (0)")
    add("--num-samples", type=integer, default=1, metavar="n", help="number of texts (1)")
    add(
        "--stop-at-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="cut texts at their first end of text (default: of models with a chat template)",
    )
    add("--stop", action="append", default=[], metavar="TEXT", help="cut texts before this string;"
        " may be repeated")  # fmt: skip
    add("--tp", type=integer, default=1, metavar="N", help="tensor-parallel size, if > 1 (1)")
    add("--json", type=path, metavar="FILE", help=JSON_HELP)
    add("--replay-html", type=path, metavar="FILE", help="write a page that replays the order")
    refuse_renamed_options(parser, RENAMED)
    return parser


if __name__ == "__main__":
    run_command(main)
