"""The report of one run or of several: learning curves, metrics of evaluations, galleries."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from ofa_jax.reports import curves
from ofa_jax.reports.page import write_page
from ofa_jax.reports.run_files import Gallery, RunFiles, read_run
from ofa_jax.utils import files

REPORT_FILE = "report.html"
_MAX_STEPS = 8


@dataclasses.dataclass(frozen=True)
class MetricsTable:
    """The metrics of evaluations side by side.

    Attributes:
      title: the split.
      columns: a run and step each.
      rows: task, metric, and a value as text for each column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[str]]]


def write_report(
    model_dirs: Sequence[epath.PathLike], path: epath.PathLike | None = None
) -> pathlib.Path:
    """Writes the report of runs to one self-contained HTML file.

    Args:
      model_dirs: one run directory, or several to compare.
      path: of the file; `report.html` in the first run directory when None.

    Returns:
      The path of the file.

    Raises:
      FileNotFoundError: a directory does not exist, or has nothing to report.
    """
    runs = list(_read_runs([pathlib.Path(directory) for directory in model_dirs]))
    target = pathlib.Path(path) if path is not None else runs[0].path / REPORT_FILE
    write_page(
        target,
        "report.html",
        title=", ".join(run.name for run in runs),
        runs=runs,
        colours=curves.COLOURS,
        plotly=curves.plotly_script(),
        sections=[
            ("Loss of each objective", curves.figures(runs, curves.objective_charts(runs))),
            ("Token accuracy", curves.figures(runs, curves.accuracy_charts(runs))),
            ("Training", curves.figures(runs, curves.training_charts(runs))),
        ],
        tables=list(metrics_tables(runs)),
        galleries=[(run, gallery) for run in runs for gallery in run.galleries],
        gallery_json=[_gallery_json(run, gallery) for run in runs for gallery in run.galleries],
    )
    return target


def write_at_end(model_dir: epath.Path, log: Callable[[str], None]) -> None:
    """Writes the report of a run when a command ends; a failure is only logged.

    The first host writes it. Runs in an object store get theirs by `tools.report` on a copy.

    Args:
      model_dir: the run directory.
      log: is called with where the report is.
    """
    if jax.process_index() > 0 or not files.is_local(model_dir):
        return
    try:
        log(f"The report is {write_report([model_dir])}.")
    except Exception as error:  # noqa: BLE001  a page must not cost a run its exit code
        log(f"No report was written ({type(error).__name__}: {error}).")


def _read_runs(model_dirs: Sequence[pathlib.Path]) -> Iterator[RunFiles]:
    """Reads runs; equal directory names get the names of their parents, too."""
    names = collections.Counter(path.resolve().name for path in model_dirs)
    for path in model_dirs:
        name = path.resolve().name
        yield read_run(path, name if names[name] == 1 else f"{path.resolve().parent.name}/{name}")


def metrics_tables(runs: Sequence[RunFiles]) -> Iterator[MetricsTable]:
    """Yields a table for each evaluated split: the latest checkpoints of each run."""
    splits = dict.fromkeys(split for run in runs for split in run.evaluations)
    for split in splits:
        columns: dict[str, Mapping[str, Mapping[str, float]]] = {}
        for run in runs:
            steps = sorted(run.evaluations.get(split, {}))
            for step in steps[-_MAX_STEPS:]:
                name = f"{run.name}: step {step}" if len(runs) > 1 else f"step {step}"
                columns[name] = run.evaluations[split][step]
        rows = [
            (
                task,
                metric,
                [_shown(column.get(task, {}).get(metric)) for column in columns.values()],
            )
            for task, metric in _metrics(columns.values())
        ]
        yield MetricsTable(split, list(columns), rows)


def _metrics(columns: Iterable[Mapping[str, Mapping[str, float]]]) -> list[tuple[str, str]]:
    """Returns all pairs of task and metric, in the order of the tasks' names."""
    pairs = {
        (task, metric): None for column in columns for task in column for metric in column[task]
    }
    return sorted(pairs, key=lambda pair: pair[0])


def _shown(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _gallery_json(run: RunFiles, gallery: Gallery) -> dict[str, Any]:
    """Returns what programs may want of a gallery: everything but the images."""
    return {
        "run": run.name,
        "split": gallery.split,
        "step": gallery.step,
        "task": gallery.task,
        "examples": [
            {name: value for name, value in example.items() if "image" not in name}
            for example in gallery.examples
        ],
    }
