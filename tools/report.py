"""Writes the report of runs: learning curves, metrics of evaluations, galleries of examples.

    python -m tools.report runs/pretrain_scenes
    python -m tools.report runs/a runs/b --output=comparison.html

The report is one HTML file that opens from disk without a network.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from ofa_jax.cli.errors import user_errors
from ofa_jax.reports.run_report import REPORT_FILE, write_report

from .command import user_command


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model_dirs", nargs="+", type=pathlib.Path, metavar="RUN", help="run directories"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help=f"the file to write; {REPORT_FILE} in the first run directory by default",
    )
    options = parser.parse_args(arguments)
    with user_errors():
        path = write_report(options.model_dirs, options.output)
    print(f"The report is in {path}.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
