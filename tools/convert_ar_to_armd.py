"""A pretrained AR model of Hugging Face to an ARMD checkpoint: the same function, left to right."""

import argparse
import signal
from dataclasses import fields
from pathlib import Path

from armd_scale.checkpoint.hf.convert import ParityCheck, convert_and_check
from armd_scale.checkpoint.hf.importer import ConversionRequest
from armd_scale.checkpoint.hf.source import DTYPES, ArmdSettings
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import run_command
from armd_scale.log import configure
from armd_scale.parallel.environment import read_environment

_EXAMPLE = """example:
  python tools/convert_ar_to_armd.py --hf models/Llama-3.1-8B --output armd/llama-3.1-8b
  torchrun --nproc-per-node 8 tools/convert_ar_to_armd.py ...    (the processes share the tensors)
exit status 1: converted, but the two models differ by more than rounding"""


def main() -> int:
    """Converts, compares, prints the figures; 1 where they fail."""
    args = _parser().parse_args()
    configure()
    # SIGTERM, as schedulers send it, leaves as Ctrl-C does: with nothing half-written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = ConversionRequest(
        **{name: getattr(args, name) for name in ("hf", "output", "dtype", "overwrite")},
        settings=ArmdSettings(
            **{field.name: getattr(args, field.name) for field in fields(ArmdSettings)}
        ),
        parallel=ParallelConfig(tensor=args.tp, pipeline=args.pp),
    )
    check = ParityCheck(mode=args.verify, text=args.text, json=args.json)
    return int(not convert_and_check(wanted, check, read_environment()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, choices = parser.add_argument, ("anchor", "prefix", "learned", "anchor+prefix")
    add("--hf", required=True, type=Path, metavar="FOLDER", help="as save_pretrained wrote it")
    add("--output", required=True, type=Path, metavar="CHECKPOINT", help="folder to be made")
    add("--query", choices=choices, help="start of a query row (default: anchor, which is exact)")
    add("--two-stream-layers", type=int, metavar="N", help="lower layers (default: half of them)")
    add("--upper-visibility", choices=("block", "self"), help="default: block")
    add("--max-positions", type=int, metavar="N", help="longest text (default: the folder's)")
    add("--tp", type=int, default=1, metavar="N", help="tensor parallel size it is meant for")
    add("--pp", type=int, default=1, metavar="N", help="pipeline parallel size it is meant for")
    add("--dtype", choices=("keep", *DTYPES), default="keep", help="of the weights")
    add("--seed", type=int, default=1234, metavar="K", help="of tensors that an AR model lacks")
    add("--verify", choices=("logits", "layers", "none"), default="logits",
        help="compare with transformers: in memory, one layer at a time, or not")  # fmt: skip
    add("--text", type=Path, metavar="FILE", help="text to compare on (default: a short one)")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    add("--overwrite", action="store_true", help="replace a checkpoint at --output")
    return parser


if __name__ == "__main__":
    run_command(main)
