"""Runs the fuzzer, or one of its cases again.

    bash tests/run.sh fuzz                                    ten minutes, half on a new seed
    bash tests/run.sh fuzz --minutes=2 --seed=7 --target=tsv
    bash tests/run.sh fuzz --seed=7 --target=tsv --case=123   one case, with its files and traceback

Exit code 0: no case has failed; 1: some have, and the summary says how to run them again.
"""

import argparse
import pathlib
import secrets
import sys

from fuzz import runner
from fuzz.targets import TARGETS

FIXED_SEED = 17


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="bash tests/run.sh fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="in all")
    parser.add_argument("--cases", type=int, help="of each target, instead of minutes")
    parser.add_argument(
        "--seed", type=int, help=f"the only seed; {FIXED_SEED} and a new one when not given"
    )
    parser.add_argument(
        "--target", default=",".join(TARGETS), help=f"one or several of {', '.join(TARGETS)}"
    )
    parser.add_argument("--case", type=int, help="runs this case of --seed and --target again")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="after which a case counts as hanging"
    )
    parser.add_argument("--report", default="runs/fuzz", help="folder of failing cases")
    options = parser.parse_args(arguments)
    options.target = options.target.split(",")
    if unknown := set(options.target) - set(TARGETS):
        parser.error(f"there is no target {', '.join(unknown)}: choose from {', '.join(TARGETS)}")
    return options


def run_again(options: argparse.Namespace, report: runner.Report) -> None:
    """Runs one case, and shows its failure."""
    case = runner.Case(options.seed, options.target[0], options.case)
    worker = runner.WorkerProcess()
    try:
        result = worker.run(case, options.seconds)
        report.add(case, result, worker.folder / "case")
    finally:
        worker.close()
    print(result.get("traceback") or result["outcome"])


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parse(arguments)
    report = runner.Report(pathlib.Path(options.report))
    if options.case is not None:
        if options.seed is None or len(options.target) != 1:
            print("error: --case needs --seed and one --target.", file=sys.stderr)
            return 2
        run_again(options, report)
    else:
        seeds = [options.seed]
        if options.seed is None:
            seeds = [FIXED_SEED, secrets.randbelow(10**9)]
        for seed in seeds:
            print(f"seed {seed}", flush=True)
            schedule = runner.Schedule(
                seed, options.target, options.minutes / len(seeds), options.cases
            )
            runner.run_seed(schedule, report, options.seconds, options.workers)
        runner.confirm(report, options.seconds)
    for line in report.lines():
        print(line)
    return 1 if report.groups else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
