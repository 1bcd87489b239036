"""Writes results/zero_shot.json, .md and .svg: unseen tasks and other wordings.

The page and the plot are made from the JSON file:

    {"split", "seeds", "examples", "commands", "commit",
     "runs": {role: {"model_dir", "steps", "minutes"}},        roles: see ROLES
     "tasks": {task: {"count", "majority",
                      "zero_shot": {role: accuracy}, "among_answers": {role: accuracy},
                      "by_type": {role: {type: accuracy}},
                      "fine_tuned": {role: {seed: accuracy}}}},
     "wordings": {role: {"objective/metric": {"published", "trained", "unseen"}}}}
"""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import result_files, svg_plots
from .svg_plots import Series

ROLES = {
    "model": "the model",
    "without": "without the region tasks",
    "wordings": "trained with several wordings",
}
"""Role of a run in the comparison -> what the page calls it."""
KINDS = ("published", "trained", "unseen")
NAME = "zero_shot"


def save(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes the three files atomically."""
    plot = draw(results) if results["tasks"] else None
    result_files.write(directory, NAME, results, page(results), plot)


def standard_error(share: float, count: int) -> float:
    """Returns the standard error of a share of some examples."""
    return math.sqrt(share * (1 - share) / count)


def verdict(value: float, baseline: float, count: int) -> str:
    """Says whether an accuracy differs from a baseline by two standard errors of the difference.

    Args:
      value: of the model.
      baseline: on the same examples.
      count: the number of examples.
    """
    error = math.hypot(standard_error(value, count), standard_error(baseline, count))
    if abs(value - baseline) <= 2 * error:
        return "within noise"
    return "above" if value > baseline else "below"


def page(results: Mapping[str, Any]) -> str:
    """Returns the Markdown page."""
    parts = ["# Unseen tasks and other wordings", _about(results)]
    if results["tasks"]:
        parts += ["## Unseen tasks", _tasks(results), f"![Accuracy of each task]({NAME}.svg)"]
        parts += ["### By type of question", _types(results)]
    if results["wordings"]:
        parts += ["## Other wordings of the trained tasks", _wordings(results)]
    return "\n\n".join(parts) + "\n"


def _about(results: Mapping[str, Any]) -> str:
    runs = [
        f"- {ROLES[role]}: `{run['model_dir']}`, {run['steps']:,} steps, "
        + ("time unknown" if run["minutes"] is None else f"{run['minutes']:.1f} minutes")
        for role, run in results["runs"].items()
    ]
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [*runs, f"- Split `{results['split']}`; seeds {seeds}; commit {results['commit']}"]
    return (
        "\n".join(lines) + "\n\n```bash\n" + "\n".join(results["commands"]) + "\n```\n\n"
        "All predictions are generated, and correct if they equal the only correct answer. The "
        "majority is the most frequent training answer to questions of the same type. A value "
        "differs from it if it does by more than two standard errors of the difference."
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _of_seeds(values: Sequence[float]) -> str:
    """Returns the mean over seeds and its standard error."""
    if not values:
        return "-"
    mean = _share(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _roles(results: Mapping[str, Any], field: str) -> list[str]:
    """Returns the roles that have a value in a field of some task."""
    return [
        role for role in ROLES if any(task[field].get(role) for task in results["tasks"].values())
    ]


def _tasks(results: Mapping[str, Any]) -> str:
    """Returns the table of the unseen tasks."""
    zero, among, tuned = (
        _roles(results, field) for field in ("zero_shot", "among_answers", "fine_tuned")
    )
    header = ["task", "examples", "majority"]
    header += [f"zero-shot, {ROLES[role]}" for role in zero]
    header += [f"among its answers, {ROLES[role]}" for role in among]
    header += [f"after {results['examples']} examples, {ROLES[role]}" for role in tuned]
    rows = []
    for name, task in results["tasks"].items():
        row = [name.replace("_", " "), str(task["count"]), _share(task["majority"])]
        for field, roles in (("zero_shot", zero), ("among_answers", among)):
            for role in roles:
                value = task[field].get(role)
                row.append(_share(value) + _against(value, task))
        row += [_of_seeds(list(task["fine_tuned"].get(role, {}).values())) for role in tuned]
        rows.append(row)
    return _table(header, rows)


def _against(value: float | None, task: Mapping[str, Any]) -> str:
    if value is None:
        return ""
    return f" ({verdict(value, task['majority'], task['count'])})"


def _types(results: Mapping[str, Any]) -> str:
    """Returns the zero-shot accuracy of each type of question."""
    roles = _roles(results, "by_type")
    rows = [
        [name.replace("_", " "), kind]
        + [_share(task["by_type"].get(role, {}).get(kind)) for role in roles]
        for name, task in results["tasks"].items()
        for kind in sorted({kind for own in task["by_type"].values() for kind in own})
    ]
    return _table(["task", "type", *(ROLES[role] for role in roles)], rows)


def _wordings(results: Mapping[str, Any]) -> str:
    """Returns the table of the wordings: what is lost by another wording."""
    names: dict[str, None] = {}
    for own in results["wordings"].values():
        names.update(dict.fromkeys(own))
    header = ["objective", "metric"]
    for role in results["wordings"]:
        header += [f"{kind}, {ROLES[role]}" for kind in KINDS]
    rows = []
    for name in names:
        objective, metric = name.split("/", 1)
        row = [objective.replace("_", " "), metric.replace("_", " ")]
        for own in results["wordings"].values():
            row += [_number(metric, own.get(name, {}).get(kind)) for kind in KINDS]
        rows.append(row)
    return (
        "Published: the wording of the paper. Trained: those that training with several wordings "
        "has. Unseen: wordings that no training has.\n\n" + _table(header, rows)
    )


def _number(metric: str, value: float | None) -> str:
    """Returns a metric as a share; CIDEr-D is none."""
    if value is not None and metric == "cider_d":
        return f"{value:.3f}"
    return _share(value)


def draw(results: Mapping[str, Any]) -> str:
    """Returns the plot of the unseen tasks: majority, zero-shot, and after some examples."""
    tasks = list(results["tasks"].values())
    places = list(range(len(tasks)))
    series = [Series("majority", places, [task["majority"] for task in tasks], colour=7)]
    shift = 0.12
    for number, role in enumerate(_roles(results, "zero_shot")):
        known = [(k, task["zero_shot"][role]) for k, task in enumerate(tasks)
                 if role in task["zero_shot"]]  # fmt: skip
        errors = [standard_error(value, tasks[k]["count"]) for k, value in known]
        xs = [k + shift * (2 * number + 1) for k, _ in known]
        label = f"zero-shot: {_SHORT[role]}"
        series.append(Series(label, xs, [value for _, value in known], errors, colour=number))
        tuned = [(k, list(task["fine_tuned"].get(role, {}).values()))
                 for k, task in enumerate(tasks)]  # fmt: skip
        tuned = [(k, values) for k, values in tuned if values]
        if tuned:
            xs = [k + shift * (2 * number + 2) for k, _ in tuned]
            means = [statistics.fmean(values) for _, values in tuned]
            label = f"after {results['examples']}: {_SHORT[role]}"
            series.append(Series(label, xs, means, colour=3 + number))
    names = [_BRIEF.get(name, name) for name in results["tasks"]]
    return svg_plots.plot(series, "Unseen tasks", "", "accuracy", x_names=names)


_SHORT = {"model": "model", "without": "no regions", "wordings": "wordings"}
_BRIEF = {
    "grounded_question_answering": "grounded QA",
    "region_neighbour": "neighbour",
    "region_in_style": "style",
    "region_yes_no": "yes or no",
}
