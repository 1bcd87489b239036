"""The numbers of all evaluations in a directory, and how people see them."""

import json
import math
from collections.abc import Mapping, Sequence

from etils import epath
from rich.console import Console
from rich.table import Table

from ofa_jax.evaluation.evaluator import COMPILATION, DATA, DECODING, METRICS, Result
from ofa_jax.utils import files

METRICS_FILE = "metrics.json"
_MOST_COLUMNS = 5


class Results:
    """`metrics.json`: {step: {task: {metric: value}}}."""

    def __init__(self, directory: epath.Path):
        """Reads what is there."""
        self._path = directory / METRICS_FILE
        self._values: dict[int, dict[str, dict[str, float]]] = {}
        if self._path.exists():
            self._values = {int(k): v for k, v in json.loads(self._path.read_text()).items()}

    def has(self, step: int, task: str) -> bool:
        """Whether a task is evaluated on a step."""
        return task in self._values.get(step, {})

    def of(self, step: int) -> Mapping[str, Mapping[str, float]]:
        """Task -> its metrics on a step."""
        return self._values.get(step, {})

    def add(self, step: int, task: str, metrics: Mapping[str, float]) -> None:
        """Adds a result and writes all, at once. The first host does it."""
        self._values.setdefault(step, {})[task] = dict(metrics)
        files.write_json(self._path, {str(key): self._values[key] for key in sorted(self._values)})


def scalars(task: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """For TensorBoard."""
    return {
        f"evaluation/{task}/{name}": value
        for name, value in metrics.items()
        if math.isfinite(value)
    }


def describe(task: str, result: Result) -> str:
    """One line: the numbers of a task, and where its time went."""
    values = "  ".join(f"{name} {format_value(value)}" for name, value in result.metrics.items())
    line = f"{task}: {values}  ({result.examples} examples"
    if result.skipped:
        line += f", {result.skipped} skipped because their records are bad"
    if result.examples_per_second is None:
        return f"{line}; all of them were asked before)"
    names = {
        DATA: "waiting for data",
        DECODING: "decoding",
        COMPILATION: "compilation",
        METRICS: "metrics",
    }
    spent = ", ".join(
        f"{names[kind]} {result.seconds[kind]:.1f} s" for kind in names if kind in result.seconds
    )
    return f"{line}; {result.examples_per_second:.1f} examples/s; {spent})"


def print_table(
    results: Results,
    steps: Sequence[int],
    tasks: Mapping[str, str | None],
    title: str,
    console: Console,
) -> None:
    """A row for every metric of every task, a column for each of the last steps.

    Args:
      results: that hold the numbers.
      steps: to show.
      tasks: name -> its main metric, which is shown bold; None where not known.
      title: above the table.
      console: to print to.
    """
    shown = sorted(set(steps))[-_MOST_COLUMNS:]
    table = Table(title=title, title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for step in shown:
        table.add_column(f"step {step}", justify="right")
    for task, main in tasks.items():
        names: dict[str, None] = {}
        for step in shown:
            names.update(dict.fromkeys(results.of(step).get(task, {})))
        main = main or next(iter(names), None)
        for place, name in enumerate(names):
            style = "bold" if name == main else None
            cells = [results.of(step).get(task, {}).get(name) for step in shown]
            table.add_row(
                task if place == 0 else "",
                name,
                *map(format_value, cells),
                style=style,
                end_section=place == len(names) - 1,
            )
    console.print(table)


def format_value(value: float | None) -> str:
    """As the table shows it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
