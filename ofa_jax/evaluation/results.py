"""The metrics of all evaluations in a directory, and how they are printed."""

import json
import math
from collections.abc import Mapping, Sequence

from etils import epath
from rich.console import Console
from rich.table import Table

from ofa_jax.evaluation.evaluator import COMPILATION, DATA, DECODING, METRICS, TaskResult
from ofa_jax.utils import files

METRICS_FILE = "metrics.json"
_MAX_COLUMNS = 5
_TIME_LABELS = {
    DATA: "waiting for data",
    DECODING: "decoding",
    COMPILATION: "compilation",
    METRICS: "metrics",
}


class EvalResults:
    """The contents of `metrics.json`: {step: {task: {metric: value}}}."""

    def __init__(self, directory: epath.Path):
        """Reads the existing results of a directory."""
        self._path = directory / METRICS_FILE
        self._values: dict[int, dict[str, dict[str, float]]] = {}
        if self._path.exists():
            self._values = {int(k): v for k, v in json.loads(self._path.read_text()).items()}

    def has(self, step: int, task: str) -> bool:
        """Returns whether a task was evaluated on the checkpoint of a step."""
        return task in self._values.get(step, {})

    def of_step(self, step: int) -> Mapping[str, Mapping[str, float]]:
        """Returns the metrics of each task evaluated on the checkpoint of a step."""
        return self._values.get(step, {})

    def add(self, step: int, task: str, metrics: Mapping[str, float]) -> None:
        """Adds a result and rewrites the file atomically; only the first host calls it."""
        self._values.setdefault(step, {})[task] = dict(metrics)
        files.write_json(self._path, {str(key): self._values[key] for key in sorted(self._values)})


def tensorboard_scalars(task: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the finite metrics under their TensorBoard tags."""
    return {
        f"evaluation/{task}/{name}": value
        for name, value in metrics.items()
        if math.isfinite(value)
    }


def summarise(task: str, result: TaskResult) -> str:
    """Formats a task's metrics and where its time went, in one line."""
    values = "  ".join(f"{name} {format_value(value)}" for name, value in result.metrics.items())
    line = f"{task}: {values}  ({result.examples} examples"
    if result.skipped:
        line += f", {result.skipped} skipped because their records are invalid"
    if result.examples_per_second is None:
        return f"{line}; all predictions existed already)"
    times = ", ".join(
        f"{label} {result.seconds[kind]:.1f} s"
        for kind, label in _TIME_LABELS.items()
        if kind in result.seconds
    )
    return f"{line}; {result.examples_per_second:.1f} examples/s; {times})"


def print_table(
    results: EvalResults,
    steps: Sequence[int],
    tasks: Mapping[str, str | None],
    title: str,
    console: Console,
) -> None:
    """Prints a row for every metric of every task and a column for each of the last steps.

    Args:
      results: the metrics.
      steps: steps to print.
      tasks: name -> its main metric, which is printed bold; None if unknown.
      title: title of the table.
      console: where to print.
    """
    shown = sorted(set(steps))[-_MAX_COLUMNS:]
    table = Table(title=title, title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for step in shown:
        table.add_column(f"step {step}", justify="right")
    for task, main_metric in tasks.items():
        names: dict[str, None] = {}
        for step in shown:
            names.update(dict.fromkeys(results.of_step(step).get(task, {})))
        main_metric = main_metric or next(iter(names), None)
        for index, name in enumerate(names):
            cells = [results.of_step(step).get(task, {}).get(name) for step in shown]
            table.add_row(
                task if index == 0 else "",
                name,
                *map(format_value, cells),
                style="bold" if name == main_metric else None,
                end_section=index == len(names) - 1,
            )
    console.print(table)


def format_value(value: float | None) -> str:
    """Formats a metric for the table."""
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
