"""Writes results/scenes.json and results/scenes.md, the measured results of the Scenes model.

The page is made from the JSON file:

    {"run": {...},                                   what was trained, and with what
     "splits": {"test": [row, ...], ...},            a row per number, see `Row`
     "ablations": {"split", "command", "runs": [{"name", "steps", "numbers": {...}}, ...]},
     "missing": [sentence, ...]}
"""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_jax.utils import renamed

from . import result_files

THRESHOLDS: Mapping[tuple[str, str], float] = {
    ("visual_grounding", "acc@0.5"): 0.5,
    ("visual_question_answering", "accuracy"): 0.8,
    ("image_text_matching", "accuracy"): 0.85,
    ("grounded_captioning", "accuracy"): 0.8,
    ("image_captioning", "noun_f1"): 0.8,
}
"""What the Scenes model should reach on the test split, (task, metric) -> value."""

_PLAIN = ("cider_d", "psnr")
"""Metrics that are not shares."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A number and those that it is compared with.

    Attributes:
      task, metric: what was measured.
      value: of the model; None where it was not measured.
      baseline, baseline_is: value and description of a baseline that does not see the image.
      control, control_is: the model's value on inputs that it must fail on, and their description.
      threshold: on the test split; None where there is none.
      examples: number of examples.
    """

    task: str
    metric: str
    value: float | None
    baseline: float | None = None
    baseline_is: str = ""
    control: float | None = None
    control_is: str = ""
    threshold: float | None = None
    examples: int | None = None

    @property
    def met(self) -> bool | None:
        """Whether the threshold is met; None without a threshold or a value."""
        if self.threshold is None or self.value is None:
            return None
        return self.value >= self.threshold


def load(path: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON file; returns {} if there is none.

    Raises:
      DamagedFileError: it is torn, or not what `save` writes.
    """
    return result_files.read(path, "the results of Scenes", page, empty={})


def save(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes both files atomically."""
    result_files.write(directory, "scenes", results, page(results))


def as_typed(command: Sequence[str]) -> str:
    """Returns a command as one types it: gin's strings keep their quotes in the shell."""

    def typed(part: str) -> str:
        name, _, value = part.partition("=")
        return f'{name}="{value}"' if "'" in value else shlex.quote(part)

    return " ".join(map(typed, command))


def as_json(row: Row) -> dict[str, Any]:
    """Returns a row as JSON, with whether it met its threshold."""
    return dataclasses.asdict(row) | {"met": row.met}


def shown(metric: str, value: float | None) -> str:
    """Formats a number for the page: shares in per cent."""
    if value is None:
        return "-"
    if metric == "psnr":
        return f"{value:.2f} dB"
    return f"{value:.3f}" if metric in _PLAIN else f"{100 * value:.1f} %"


def page(results: Mapping[str, Any]) -> str:
    """Returns the Markdown page."""
    parts = ["# What the Scenes model has learned", _about(results.get("run"))]
    for split, rows in results.get("splits", {}).items():
        parts += [f"## Split `{split}`", _rows(rows)]
    if ablations := results.get("ablations"):
        parts += [
            "## Ablation",
            "An earlier one, which reads the objectives off themselves, of one seed. Today's "
            "compares downstream tasks (`docs/claims.md`).",
            ablation_table(ablations),
        ]
    else:
        parts.append(
            "The ablation was not run: `python -m tools.ablations` writes it to "
            "`results/ablations.md`."
        )
    if missing := results.get("missing"):
        parts += ["## Missing", "\n".join(f"- {sentence}" for sentence in missing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return "The run was not evaluated: `python -m tools.report_scenes`."
    lines = [
        f"- Trained: {run['steps']} of {run['total_steps']} steps, {_minutes(run)}",
        *(
            f"- Earlier stage: {stage['steps']} steps, {stage['checkpoint']}, {_minutes(stage)}"
            for stage in renamed.with_new_names(run, renamed.RESULTS).get("stages", ())
        ),
        f"- {run['parameters']:,} parameters; seed {run['seed']}; commit {run['commit']}; "
        f"{run['device']}",
        f"- Checkpoint: `{run['checkpoint']}`",
    ]
    commands = "\n".join(run["commands"])
    return "\n".join(lines) + (
        f"\n\n```bash\n{commands}\n```\n\nAll predictions are generated. The baseline "
        "knows the training split and does not see the image; the control is the model where it "
        "must fail."
    )


def _minutes(run: Mapping[str, Any]) -> str:
    minutes = run.get("minutes_trained")
    return "time unknown" if minutes is None else f"{minutes:.1f} minutes"


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| task | metric | examples | model | baseline | control | threshold |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        metric = row["metric"]
        baseline, control = (
            shown(metric, row[name]) + (f" ({row[f'{name}_is']})" if row[f"{name}_is"] else "")
            for name in ("baseline", "control")
        )
        verdict = {True: "met", False: "not met", None: "not measured"}[row["met"]]
        threshold = renamed.with_new_names(row, renamed.RESULTS).get("threshold")
        bar = "" if threshold is None else f"{shown(metric, threshold)}: {verdict}"
        lines.append(
            f"| {row['task'].replace('_', ' ')} | {metric.replace('_', ' ')} | "
            f"{row['examples'] or '-'} | {shown(metric, row['value'])} | {baseline} | {control} | "
            f"{bar} |"
        )
    return "\n".join(lines)


def ablation_table(ablations: Mapping[str, Any]) -> str:
    """Returns the ablation as a Markdown table: a row per number, a column per run."""
    runs = ablations["runs"]
    names: dict[str, None] = {}
    for run in runs:
        names.update(dict.fromkeys(run["numbers"]))
    lines = [
        f"Split `{ablations['split']}`; `{ablations['command']}`; commit {ablations['commit']}. "
        "With equal steps each remaining objective has equally many examples. `-`: not trained.",
        "",
        "| | "
        + " | ".join(f"{r['name'].replace('_', ' ')} ({r['steps']} steps)" for r in runs)
        + " |",
        "| --- " * (len(runs) + 1) + "|",
    ]
    for name in names:
        metric = name.split("/", 1)[1]
        cells = [shown(metric, run["numbers"].get(name)) for run in runs]
        lines.append(f"| {name.replace('_', ' ').replace('/', ': ', 1)} | {' | '.join(cells)} |")
    return "\n".join(lines)
