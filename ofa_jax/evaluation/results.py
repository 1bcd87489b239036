"""The metrics of all evaluations in a directory, and how they are printed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ofa_jax.evaluation.evaluator import COMPILATION, DATA, DECODING, METRICS, TaskResult
from ofa_jax.evaluation.task_folder import DAMAGED_RECORD, RESULT, is_metrics
from ofa_jax.utils import files
from ofa_jax.utils.text_files import DamagedFileError, read_json

METRICS_FILE = "metrics.json"
_MAX_COLUMNS = 5
_TIME_LABELS = {
    DATA: "waiting for data",
    DECODING: "decoding",
    COMPILATION: "compilation",
    METRICS: "metrics",
}

_Values = dict[int, dict[str, dict[str, float]]]


class EvalResults:
    """The contents of `metrics.json`: {step: {task: {metric: value}}}.

    Attributes:
      failures: sentences about what could not be computed in this evaluation.
    """

    def __init__(self, directory: epath.Path, log: Callable[[str], None] = logging.warning):
        """Reads the existing results of a directory.

        A damaged `metrics.json` is put together again from the `result.json` of every task.
        """
        self._directory = directory
        self._values: _Values = {}
        self.failures: list[str] = []
        path = directory / METRICS_FILE
        if path.exists():
            try:
                self._values = _parse(read_json(path))
            except (DamagedFileError, OSError, ValueError) as error:
                log(
                    f"{str(error).rstrip('.')} ({DAMAGED_RECORD.name}): it is made anew from the "
                    "results of the tasks."
                )
                self._values = _collect(directory)

    def has(self, step: int, task: str) -> bool:
        """Returns whether a task was evaluated on the checkpoint of a step."""
        return task in self._values.get(step, {})

    def of_step(self, step: int) -> Mapping[str, Mapping[str, float]]:
        """Returns the metrics of each task evaluated on the checkpoint of a step."""
        return self._values.get(step, {})

    def add(self, step: int, task: str, metrics: Mapping[str, float]) -> None:
        """Adds a result and rewrites the file atomically; only the first host calls it.

        Values that are not finite are left out: JSON does not know them.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._values.setdefault(step, {})[task] = finite
        values = {str(key): self._values[key] for key in sorted(self._values)}
        files.write_json(self._directory / METRICS_FILE, values)

    def counts(self, step: int, task: str) -> dict[str, int]:
        """Returns what is known of the examples that no metric is over; empty if all were scored.

        The counts are those of the task's `result.json`.
        """
        result = _read_result(self._directory / str(step) / task)
        skipped, examples = result.get("skipped"), result.get("examples")
        scored = result.get("scored", examples)  # earlier versions scored all examples
        counts = {}
        if isinstance(skipped, int) and skipped:
            counts["examples skipped"] = skipped
        if isinstance(scored, int) and isinstance(examples, int) and scored < examples:
            counts["examples without reference"] = examples - scored
        return counts


def _parse(value: Any) -> _Values:
    """Returns the metrics of a file; raises ValueError for anything else."""
    if not isinstance(value, dict) or not all(
        step.isdecimal() and isinstance(tasks, dict) and all(map(is_metrics, tasks.values()))
        for step, tasks in value.items()
    ):
        raise ValueError(f"{METRICS_FILE} does not hold the metrics of tasks by step.")
    return {int(step): tasks for step, tasks in value.items()}


def _collect(directory: epath.Path) -> _Values:
    """Returns the metrics that the results of the tasks hold."""
    values: _Values = {}
    for path in directory.glob(f"*/*/{RESULT}"):
        folder = path.parent
        result = _read_result(folder)
        if folder.parent.name.isdecimal() and is_metrics(result.get("metrics")):
            values.setdefault(int(folder.parent.name), {})[folder.name] = result["metrics"]
    return values


def _read_result(folder: epath.Path) -> dict[str, Any]:
    """Returns the contents of a task's `result.json`; empty if it cannot be read."""
    try:
        result = read_json(folder / RESULT)
    except (DamagedFileError, OSError):
        return {}
    return result if isinstance(result, dict) else {}


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
    line = f"{task}: {values or 'no metric'}  ({result.examples} examples"
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


def describe_unscored(task: str, result: TaskResult, folder: epath.Path) -> list[str]:
    """Returns the sentence that nothing was scored, and why; none if something was."""
    if result.unscored_reason is None:
        return []
    return [
        f"{task}: nothing was scored, because {result.unscored_reason}; the predictions are in "
        f"{folder}."
    ]


def describe_findings(task: str, result: TaskResult) -> list[str]:
    """Returns sentences about what has no reference, was skipped or changed; none if nothing."""
    sentences = []
    if result.unscored_reason is None and result.scored < result.examples:
        missing = result.examples - result.scored
        sentences.append(
            f"{task}: {missing} of {result.examples} examples have no reference, so the metrics "
            f"are over the other {result.scored}."
        )
    if result.undefined:
        sentences.append(
            f"{task}: {', '.join(result.undefined)} cannot be computed for these predictions "
            "(not a finite number)."
        )
    if result.findings:
        counts = ", ".join(f"{reason}: {count}" for reason, count in result.findings.items())
        sentences.append(f"{task}: records that were skipped or changed, by reason: {counts}.")
    return sentences


def describe_failures(task: str, step: int, failed: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each metric that failed."""
    return [
        f"{task} on step {step}: the metric {name} failed ({reason})"
        for name, reason in failed.items()
    ]


def print_table(
    results: EvalResults,
    steps: Sequence[int],
    tasks: Mapping[str, str | None],
    title: str,
    console: Console,
) -> None:
    """Prints a row for every metric of every task and a column for each of the last steps.

    Rows for the numbers of skipped examples and of those without a reference follow where there are
    some.

    Args:
      results: the metrics.
      steps: steps to print.
      tasks: name -> its main metric, which is printed bold; None if unknown.
      title: title of the table.
      console: where to print.
    """
    shown = sorted(set(steps))[-_MAX_COLUMNS:]
    table = Table(title=escape(title), title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for step in shown:
        table.add_column(f"step {step}", justify="right")
    for task, main_metric in tasks.items():
        columns = [results.of_step(step).get(task, {}) for step in shown]
        counts = [results.counts(step, task) for step in shown]
        names = dict.fromkeys(name for column in columns for name in column)
        main_metric = main_metric or next(iter(names), None)
        rows = [(name, [format_value(column.get(name)) for column in columns]) for name in names]
        rows += [
            (name, [str(column.get(name, 0)) for column in counts])
            for name in dict.fromkeys(name for column in counts for name in column)
        ]
        if not names and any(results.has(step, task) for step in shown):
            rows.insert(0, ("nothing was scored", ["-" for _ in shown]))
        for index, (name, cells) in enumerate(rows):
            table.add_row(
                escape(task) if index == 0 else "",
                escape(name),
                *cells,
                style="bold" if name == main_metric else None,
                end_section=index == len(rows) - 1,
            )
    console.print(table)


def format_value(value: float | None) -> str:
    """Formats a metric for the table."""
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
