"""Report tools/adapt_experiment.sh: findings, learning curves and a plot, from its run folder."""

import argparse

from armd_scale.errors import exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.arguments import path
    from armd_scale.experiments.adaptation.report import collect, table, write
    from armd_scale.log import configure


def main() -> None:
    """Write results.json, results.md and adaptation.svg into the folder, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python tools/report_adaptation.py runs/adapt"
    )
    parser.add_argument("folder", type=path, help="folder of the experiment's runs")
    args = parser.parse_args()
    configure()
    results = collect(args.folder)
    write(results, args.folder)
    print(table(results))


if __name__ == "__main__":
    run_command(main)
