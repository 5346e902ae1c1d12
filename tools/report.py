"""One self-contained HTML page with the curves of a run, or of several side by side."""

import argparse

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path
    from armd_scale.report.write import write_report

_EXAMPLE = """example:
  python tools/report.py runs/demo
  python tools/report.py runs/baseline runs/strided --output comparison.html"""


def main() -> None:
    """Write the page and print its path."""
    arguments = _parser().parse_args()
    print(write_report(arguments.folders, arguments.output))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="+", type=path, metavar="RUN_FOLDER", help="run.folder of a training run")
    output = "file to write (default: report.html in the first folder)"
    add("--output", type=path, metavar="FILE.html", help=output)
    return parser


if __name__ == "__main__":
    run_command(main)
