"""Export a checkpoint to a Hugging Face folder: an ARMD, or the plain AR model in it."""

import argparse
import signal

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path, path_text
    from armd_scale.checkpoint.hf.exporter import export
    from armd_scale.checkpoint.load import open_checkpoint
    from armd_scale.config.schema import ParallelConfig
    from armd_scale.log import configure, get_logger
    from armd_scale.parallel.environment import read_environment
    from armd_scale.parallel.process_groups import process_groups

_EXAMPLE = """example:
  python tools/export_hf.py --checkpoint runs/adapted --output models/llama-armd
  python tools/export_hf.py --checkpoint runs/adapted --output models/llama-ar --as-ar
--as-ar writes a folder for transformers.AutoModelForCausalLM that has the logits of the ARMD left
to right. It is refused if there is no such model, as with other query initializations than anchor.
"""


def main() -> None:
    """Run the command."""
    args = _parser().parse_args()
    configure()
    # Handle SIGTERM, which schedulers send, like Ctrl-C: the exception removes partial output.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    checkpoint = open_checkpoint(args.checkpoint)
    options = {"as_ar": args.as_ar, "overwrite": args.overwrite}
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        if environment.is_rank0:
            export(checkpoint, args.output, groups=groups, **options)
    get_logger("armd_scale.export").info("wrote %s", args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    checkpoint = "checkpoint, or run folder (its newest checkpoint)"
    add("--checkpoint", required=True, type=path_text, help=checkpoint)
    add("--output", required=True, type=path, metavar="FOLDER", help="folder to create")
    add("--as-ar", action="store_true", help="leave out what a plain AR model does not have")
    add("--overwrite", action="store_true", help="replace a folder at --output")
    return parser


if __name__ == "__main__":
    run_command(main)
