"""Measures what the README states: one figure a subcommand, printed as a Markdown table.

Example: python tools/bench.py memory --ranks 4 --json memory.json
"""

from armd_scale.bench.cli import bench_parser, run_bench
from armd_scale.errors import run_command


def main() -> None:
    """Runs the bench that the command line names."""
    run_bench(bench_parser(__doc__).parse_args())


if __name__ == "__main__":
    run_command(main)
