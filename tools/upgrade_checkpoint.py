"""Convert checkpoints of the former format (2) to the present one, in place."""

import argparse

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path
    from armd_scale.checkpoint.upgrade import upgrade_checkpoint
    from armd_scale.log import configure, get_logger

_EXAMPLE = """example:
  python tools/upgrade_checkpoint.py runs/owt/checkpoints/step_*
Each folder is replaced once its successor is complete. Nothing in it is executed."""


def main() -> None:
    """Convert the checkpoints one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=path, metavar="CHECKPOINT", help="folders")
    folders = parser.parse_args().checkpoints
    configure()
    for folder in folders:
        upgrade_checkpoint(folder)
        get_logger("armd_scale.upgrade").info("converted %s", folder)


if __name__ == "__main__":
    run_command(main)
