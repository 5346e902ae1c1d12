"""Convert a pretrained Hugging Face AR model to an ARMD checkpoint, and check that it is the same.

Left to right the checkpoint computes what the AR model computes; the command prints the figures.
"""

import argparse
import signal
from dataclasses import fields

from armd_scale.errors import exit_on_interrupt, refuse_renamed_options, run_command

with exit_on_interrupt():
    from armd_scale.arguments import integer, natural_int, path, positive_int
    from armd_scale.checkpoint.hf.convert import ParityCheck, convert_and_check
    from armd_scale.checkpoint.hf.importer import ConversionRequest
    from armd_scale.checkpoint.hf.source import DTYPES, ArmdSettings
    from armd_scale.config.schema import ParallelConfig
    from armd_scale.log import configure
    from armd_scale.parallel.environment import read_environment

_EXAMPLE = """example:
  python tools/convert_ar_to_armd.py --hf models/Llama-3.1-8B --output checkpoints/llama-3.1-8b
  torchrun --nproc-per-node 8 tools/convert_ar_to_armd.py ...    (the processes share the tensors)
exit status 1: converted, but the two models differ by more than rounding"""


def main() -> int:
    """Run the command; return 1 if the two models differ."""
    args = _parser().parse_args()
    configure()
    # Handle SIGTERM, which schedulers send, like Ctrl-C: the exception removes partial output.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The layout is that of later training. Any number of processes may convert.
    request = ConversionRequest(
        **{name: getattr(args, name) for name in ("hf", "output", "dtype", "overwrite")},
        settings=ArmdSettings(
            **{field.name: getattr(args, field.name) for field in fields(ArmdSettings)}
        ),
        parallel=ParallelConfig(tensor=args.tp, pipeline=args.pp),
    )
    check = ParityCheck(mode=args.check, text=args.text, json=args.json)
    # Without a comparison (--check none) the status is 0.
    return int(not convert_and_check(request, check, read_environment()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, queries = parser.add_argument, ("anchor", "prefix", "learned", "anchor+prefix")
    add("--hf", required=True, type=path, metavar="FOLDER", help="folder from save_pretrained")
    add("--output", required=True, type=path, metavar="CHECKPOINT", help="folder to create")
    add("--query", choices=queries, help="query initialization (default: anchor, which is exact)")
    add("--two-stream-layers", type=natural_int, metavar="N", help="lower layers (default: half)")
    add("--upper-visibility", choices=("block", "self"), help="default: block")
    add("--max-positions", type=positive_int, metavar="N", help="maximum text length (config.json)")
    add("--tp", type=positive_int, default=1, metavar="N", help="tensor-parallel size (1)")
    add("--pp", type=positive_int, default=1, metavar="N", help="pipeline-parallel size (1)")
    add("--dtype", choices=("keep", *DTYPES), default="keep", help="type of the weights (keep)")
    add("--seed", type=integer, default=1234, metavar="K", help="for tensors an AR model lacks")
    add("--check", choices=("logits", "layers", "none"), default="logits",
        help="compare with transformers: whole (default), layer by layer, or not")  # fmt: skip
    add("--text", type=path, metavar="FILE", help="text to compare on (default: a built-in one)")
    add("--json", type=path, metavar="FILE", help="write the figures of the comparison here")
    add("--overwrite", action="store_true", help="replace a checkpoint at --output")
    refuse_renamed_options(parser, {"--verify": "--check"})
    return parser


if __name__ == "__main__":
    run_command(main)
