r"""Compares another implementation with this one: the same work in turn, in one run.

    python -m tools.benchmark_peer --peer="../peer/bin/python peer.py --work={work}"
    python -m tools.benchmark_peer --peer=... --works=step_tiny,pairs --turns=4 --repeats=2
    python -m tools.benchmark_peer --write_docs      # the page from an earlier --output

PEER, ours, PEER, ours: each turn is a new process on the same cores, with the same allocator
settings and number of threads, after a repeat that does not count. PEER is any command. Its
environment says what to do:

    OFA_BENCHMARK_WORK      the name of the work; also {work} in the command
    OFA_BENCHMARK_FOLDER    the folder of its inputs; also {folder}: work.json describes work and
                            model, tensors.npz has the batch, pairs.tsv the examples of `pairs`
    OFA_BENCHMARK_REPEATS   how often to do it
    OFA_BENCHMARK_THREADS   number of threads, also in OMP_NUM_THREADS and the like

It prints one JSON line for each repeat, {"seconds": 1.2}, or one for all, {"seconds": [1.2, 1.3]};
perhaps with "parts", {"encoder": 0.8}; or {"skipped": "reason"} for a work that it does not do.
Results are written after every work. Exit code 1: a work failed, the others are written; 2: a
mistake on the command line.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ofa_jax.cli.errors import FAILURE, report_error
from ofa_jax.utils import allocator, files, text_files

from .benchmark_peer_turns import PeerError, Samples, cores, environment, run, split_command
from .benchmark_peer_works import WORKS, Work
from .command import user_command
from .plan_table import with_table

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results" / "peer.json", ROOT / "docs" / "speed.md"
BEGIN = "<!-- tools.benchmark_peer -->"
SIDES = {"peer": "the peer", "ours": "our side"}
"""Name -> what errors call it."""
_COLUMNS = ("work", "peer, median (least)", "ours, median (least)", "ratio", "ratio of the least")


class Side(NamedTuple):
    """How one side is started; the directory is None for the current one."""

    command: str
    directory: pathlib.Path | None = None


def our_side(repeats: int, threads: int) -> Side:
    """Returns the command of this checkout, which finds its modules from any folder."""
    options = f"--work={{work}} --folder={{folder}} --repeats={repeats} --threads={threads}"
    module = f"{__package__}.benchmark_peer_works"
    return Side(f"{shlex.quote(sys.executable)} -m {module} {options}", ROOT)


# ------------------------------------------------------------------------------------- comparing


def compare(
    name: str, work: Work, sides: Mapping[str, Side], options: argparse.Namespace
) -> dict[str, Any]:
    """Does a work on both sides in turn.

    Args:
      name: of the work.
      work: what is done.
      sides: by the names in `SIDES`.
      options: `turns`, `repeats`, `threads` and `timeout`.

    Returns:
      What is written of it as JSON.

    Raises:
      PeerError: a command failed or printed something else.
    """
    samples = {side: Samples() for side in SIDES}
    loads = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        work.write_inputs(folder)
        variables = environment(
            options.threads,
            {
                "OFA_BENCHMARK_WORK": name,
                "OFA_BENCHMARK_FOLDER": temporary,
                "OFA_BENCHMARK_REPEATS": str(options.repeats),
                "OFA_BENCHMARK_THREADS": str(options.threads),
            },
        )
        for _ in range(options.turns):
            for side, whose in SIDES.items():
                loads.append(os.getloadavg()[0])
                command, directory = sides[side]
                samples[side].add(
                    run(command, whose, variables, folder, options.timeout, directory)
                )
                if samples[side].skipped:
                    return {"title": work.title, "skipped": f"{side}: {samples[side].skipped}"}
    return {
        "title": work.title,
        "load": loads,
        "sides": {side: vars(own) for side, own in samples.items()},
        "summary": summarise(samples),
    }


def summarise(samples: Mapping[str, Samples]) -> dict[str, dict[str, float]]:
    """Returns medians, minima and ratios of the whole ("") and of the parts that both sides have.

    The ratios are ours divided by the peer's: below 1, ours is faster.
    """
    peer, ours = samples["peer"], samples["ours"]
    shared = [name for name in peer.parts if name in ours.parts]
    summary = {}
    for name in ("", *shared):
        theirs, own = (side.parts[name] if name else side.seconds for side in (peer, ours))
        medians, least = [statistics.median(x) for x in (theirs, own)], [min(theirs), min(own)]
        summary[name] = {
            "peer_median": medians[0],
            "ours_median": medians[1],
            "ratio": medians[1] / medians[0],
            "peer_min": least[0],
            "ours_min": least[1],
            "ratio_of_minima": least[1] / least[0],
        }
    return summary


def describe_machine(used: Sequence[int]) -> dict[str, Any]:
    """Returns what the figures depend on.

    Args:
      used: numbers of the cores that both sides have.
    """
    return {
        "processor": _processor(),
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "used_cores": list(used),
        "allocator": "=".join(allocator.TUNABLES),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
        "load_before": os.getloadavg()[0],
    }


def _processor() -> str:
    """Returns the name of the processor, as Linux has it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


# ------------------------------------------------------------------------------------- showing


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns the lines of the table, one for each work and part."""
    lines = []
    for name, result in results["works"].items():
        title = str(result.get("title", name))
        if "summary" not in result:
            reason = result.get("skipped") or ("it failed" if "failed" in result else "")
            lines.append([title, f"not measured {f'({reason})' if reason else ''}", "", "", ""])
            continue
        for part, found in result["summary"].items():
            lines.append(
                [
                    f"its {part}" if part else title,
                    *(
                        f"{_seconds(found[f'{side}_median'])} ({_seconds(found[f'{side}_min'])})"
                        for side in SIDES
                    ),
                    f"{found['ratio']:.2f}",
                    f"{found['ratio_of_minima']:.2f}",
                ]
            )
    return lines


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 10 else f"{value:.1f} s"


def page_block(results: Mapping[str, Any] | None) -> str:
    """Returns the Markdown that docs/speed.md has between its marks.

    Args:
      results: what `main` wrote; None if nothing was measured.
    """
    if results is None:
        works = "; ".join(work.title for work in WORKS.values())
        return f"Not measured yet: {works}. No figure of this table exists before the tool has run."
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    table = [f"| {' | '.join(_COLUMNS)} |", "| --- " * len(_COLUMNS) + "|"]
    # What a peer or a processor is called must not end a cell.
    table += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows(results)]
    missing = [work.title for name, work in WORKS.items() if name not in results["works"]]
    sentence = (
        f"{results['turns']} turns of {results['repeats']} repeats each, {results['threads']} "
        f"threads of {machine['processor']}, `{machine['allocator']}` for both; {versions}; load "
        f"before it {machine['load_before']:.1f}."
    )
    lines = [*table, "", sentence]
    if missing:
        lines.append(f"Not measured yet: {'; '.join(missing)}.")
    return "\n".join(lines)


def show(results: Mapping[str, Any], console: Console) -> None:
    """Prints the table."""
    table = Table(
        title=f"{results['turns']} turns of {results['repeats']} repeats, {results['threads']} "
        "threads; a ratio below 1: ours is faster",
        title_justify="left",
    )
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "work" else "right")
    for row in rows(results):
        table.add_row(*row)
    console.print(table)


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """Reads what `main` wrote.

    Raises:
      DamagedFileError: it is something else.
    """
    results = text_files.read_json(path)
    needed = {"machine", "works", "turns", "repeats", "threads"}
    if not isinstance(results, dict) or not needed <= set(results):
        raise text_files.DamagedFileError(
            f"{path} has no results of tools.benchmark_peer: give the --output of a run."
        )
    return results


def write_page(results: Mapping[str, Any] | None, page: pathlib.Path = PAGE) -> None:
    """Writes the results into docs/speed.md, between its marks.

    Raises:
      ValueError: the page has no marks.
    """
    files.write_text(page, with_table(text_files.read_text(page), page_block(results), BEGIN))


# ------------------------------------------------------------------------------------- the command


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_peer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--peer", help="the command of the other side, see above")
    parser.add_argument(
        "--ours",
        help="a command for this side instead, e.g. of another checkout, as --peer has it",
    )
    parser.add_argument("--works", default=",".join(WORKS), help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each side (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="in a turn (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="and cores (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=3600, help="seconds for a turn (%(default)s)"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=RESULTS, help="JSON file (results/peer.json)"
    )
    parser.add_argument(
        "--write_docs", action="store_true", help="write the table into docs/speed.md"
    )
    options = parser.parse_args(arguments)
    for name in ("turns", "repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1.")
    if not options.timeout > 0:
        parser.error("--timeout must be positive.")
    options.works = list(dict.fromkeys(name for name in options.works.split(",") if name))
    for name in options.works or [""]:
        if name not in WORKS:
            parser.error(f"there is no work {name!r}; choose from {', '.join(WORKS)}.")
    if not options.peer and not options.write_docs:
        parser.error('give the other side, as --peer="python peer.py".')
    return options


@user_command
def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    if not options.peer:
        write_page(read_results(options.output))
        return 0
    ours = Side(options.ours) if options.ours else our_side(options.repeats, options.threads)
    sides = {"peer": Side(options.peer), "ours": ours}
    for side, whose in SIDES.items():
        program = split_command(sides[side].command, whose)[0]
        if shutil.which(program) is None:
            raise PeerError(f"The program of {whose} is not there: {program}; check the command.")
    if not options.output.parent.is_dir():
        raise ValueError(f"--output: {options.output.parent} is no folder; make it.")
    with cores(options.threads) as used:
        failed = _compare_all(sides, used, options)
    return FAILURE if failed else 0


def _compare_all(
    sides: Mapping[str, Side], used: Sequence[int], options: argparse.Namespace
) -> bool:
    """Compares, writes and shows all works; returns whether one failed."""
    results: dict[str, Any] = {
        "peer": options.peer,
        "ours": options.ours or "this checkout",
        **{name: getattr(options, name) for name in ("turns", "repeats", "threads")},
        "machine": describe_machine(used),
        "works": {},
    }
    failed = False
    for name in options.works:
        try:
            results["works"][name] = compare(name, WORKS[name], sides, options)
        except PeerError as error:
            failed = True
            report_error(str(error))
            results["works"][name] = {"title": WORKS[name].title, "failed": str(error)}
        files.write_json(options.output, results)
    show(results, Console())
    if options.write_docs:
        write_page(results)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
