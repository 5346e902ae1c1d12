"""Measure speed and memory: one benchmark per subcommand, printed as a Markdown table.

Example: python tools/bench.py memory --ranks 4 --json memory.json
"""

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.bench.cli import benchmark_parser, run_benchmark


def main() -> None:
    """Run the benchmark that the command line names."""
    run_benchmark(benchmark_parser(__doc__).parse_args())


if __name__ == "__main__":
    run_command(main)
