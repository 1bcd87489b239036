"""Says what a run on Scenes has reached; writes MODEL_DIR/summary.json and results/first_run.md.

    python -m tools.summarise_scenes --model_dir=runs/pretrain_scenes

Evaluates the run by generation on test images, unless that is done, and sets each number beside its
aim. summary.json has every number as task -> metric -> value, also of the validation losses:

    {"image_captioning": {"noun_f1": 0.7, ..., "validation_loss": 1.2, "unigram_loss": 3.6}, ...}

results/first_run.json has the last run of each kind, and results/first_run.md is made from it.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.reports.run_report import REPORT_FILE
from ofa_jax.utils import files, text_files
from ofa_jax.utils.locks import directory_lock
from ofa_jax.utils.modules import import_modules

from . import output_folders, report_scenes, result_files, scenes_results
from .command import user_command
from .scenes_results import THRESHOLDS, Row
from .scenes_rows import Reporter

SPLIT = "test"
SUMMARY = "summary.json"
PAGE = "first_run"


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a number is to reach.

    Attributes:
      task, metric: which number.
      least: smallest value; None if only the baseline is to be passed.
      over_baseline: what it is to be above its baseline at least; None without a baseline.
    """

    task: str
    metric: str
    least: float | None = None
    over_baseline: float | None = None

    def wanted(self, row: Row) -> float:
        """Returns the smallest value that reaches the aim."""
        bounds = [self.least] if self.least is not None else []
        if self.over_baseline is not None and row.baseline is not None:
            bounds.append(row.baseline + self.over_baseline)
        return max(bounds)


AIMS: Mapping[str, tuple[Aim, ...]] = {
    "first": (
        Aim("image_captioning", "noun_f1", 0.6),
        Aim("visual_question_answering", "accuracy", over_baseline=0.1),
        Aim("visual_grounding", "acc@0.5", 0.25),
    ),
    "full": (
        *(Aim(task, metric, least) for (task, metric), least in THRESHOLDS.items()),
        Aim("object_detection", "f1@0.5", 0.668),
        Aim("text_infilling", "exact_spans", over_baseline=0.0),
    ),
}
"""Kind of run -> its aims. Every validation loss is to be below the unigram loss as well."""

_KINDS = {"first": "The first run", "full": "The full run"}


def aims_of(
    kind: str, rows: Sequence[Row], losses: Mapping[str, Mapping[str, float]]
) -> list[dict]:
    """Returns each aim with what was reached, as JSON.

    Args:
      kind: of the run, a key of AIMS.
      rows: of the test split.
      losses: task -> "validation_loss" and "unigram_loss".
    """
    found = {(row.task, row.metric): row for row in rows}
    aims = []
    for aim in AIMS[kind]:
        row = found.get((aim.task, aim.metric))
        reached = None if row is None else row.value
        wanted = aim.least if row is None else aim.wanted(row)
        aims.append(
            {
                "task": aim.task,
                "metric": aim.metric,
                "reached": reached,
                "wanted": wanted,
                "baseline": None if row is None else row.baseline,
                "baseline_is": "" if row is None else row.baseline_is,
                "met": reached is not None and wanted is not None and reached >= wanted,
            }
        )
    for task, of_task in sorted(losses.items()):
        loss, unigram = of_task["validation_loss"], of_task["unigram_loss"]
        aims.append(
            {
                "task": task,
                "metric": "validation_loss",
                "reached": loss,
                "wanted": unigram,
                "baseline": unigram,
                "baseline_is": "the frequencies of tokens",
                "met": loss < unigram,
            }
        )
    return aims


def read_losses(model_dir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Returns the validation loss and the unigram loss of every task; {} if there are none."""
    path = model_dir / "validation.json"
    if not path.is_file():
        return {}
    return {
        task: {"validation_loss": values["loss"], "unigram_loss": values["unigram_loss"]}
        for task, values in text_files.read_json(path).items()
    }


def summary(
    rows: Sequence[Row], losses: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Returns task -> metric -> value."""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.value is not None:
            values.setdefault(row.task, {})[row.metric] = row.value
    for task, of_task in losses.items():
        values.setdefault(task, {}).update(of_task)
    return values


def page(results: Mapping[str, Any]) -> str:
    """Returns the Markdown page of all kinds of runs."""
    parts = [
        "# What the runs on Scenes reach",
        "Written by `bash launch/local.sh` and `bash launch/local.sh full`. All predictions are "
        "generated, for test images that the model has not seen.",
    ]
    for kind, title in _KINDS.items():
        if run := results.get(kind):
            parts += [f"## {title}", _about(run), _table(run["aims"])]
    return "\n\n".join(parts) + "\n"


def _about(run: Mapping[str, Any]) -> str:
    total = run["minutes_in_all"]
    steps = f"- {run['steps']} of {run['total_steps']} steps"
    if total is not None:
        steps += f"; {total:.1f} minutes in all, set-up and evaluation included"
    lines = [
        f"- Command: `{run['command']}`",
        f"- Seed {run['seed']}; commit {run['commit']}; {run['device']}",
        steps,
    ]
    return "\n".join(lines)


def _table(aims: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| objective | metric | reached | aim | met | baseline |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for aim in aims:
        is_loss = aim["metric"] == "validation_loss"
        shown = [_shown(aim["metric"], aim[key]) for key in ("reached", "wanted", "baseline")]
        baseline = f"{shown[2]} ({aim['baseline_is']})" if aim["baseline_is"] else "-"
        lines.append(
            f"| {_words(aim['task'])} | {_words(aim['metric'])} | {shown[0]} | "
            f"{'below' if is_loss else 'at least'} {shown[1]} | {'yes' if aim['met'] else 'no'} | "
            f"{baseline} |"
        )
    return "\n".join(lines)


def _shown(metric: str, value: float | None) -> str:
    if metric == "validation_loss" and value is not None:
        return f"{value:.3f} nats"
    return scenes_results.shown(metric, value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def describe(model_dir: pathlib.Path, aims: Sequence[Mapping[str, Any]]) -> str:
    """Returns what the command prints: a line per aim, and where to look."""
    lines = [f"What {model_dir} reached, by generation on unseen test images:"]
    for aim in aims:
        sign = "<" if aim["metric"] == "validation_loss" else ">="
        name = f"{_words(aim['task'])}, {_words(aim['metric'])}"
        lines.append(
            f"  {name:<46} {_shown(aim['metric'], aim['reached']):>11}   aim {sign} "
            f"{_shown(aim['metric'], aim['wanted'])}{'' if aim['met'] else '   MISSED'}"
        )
    lines.append(f"All numbers: {model_dir / SUMMARY}")
    lines.append(f"Look at the examples and curves in {(model_dir / REPORT_FILE).absolute()}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.summarise_scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_dir", type=pathlib.Path, default="runs/pretrain_scenes")
    parser.add_argument("--results_dir", type=pathlib.Path, default="results")
    parser.add_argument("--kind", choices=list(_KINDS), default="first", help="whose aims")
    parser.add_argument(
        "--num_examples", type=int, default=500, help="of each task, for a run not evaluated yet"
    )
    parser.add_argument(
        "--baseline_examples",
        type=int,
        default=5000,
        help="number of training examples that the baselines see",
    )
    parser.add_argument(
        "--train_command", default="bash launch/local.sh", help="the command that made the run"
    )
    parser.add_argument(
        "--started", type=float, help="when the command was started, in seconds since 1970"
    )
    return parser.parse_args(arguments)


@user_command
def main(
    arguments: Sequence[str], call: Callable[[Sequence[str]], int] = report_scenes.call_python
) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    checkpoints = storage.list_checkpoints(str(options.model_dir))
    if not checkpoints or not (options.model_dir / "config.gin").is_file():
        raise ValueError(
            f"there is no trained run in {options.model_dir}: train it with `bash "
            "launch/local.sh`, or give --model_dir."
        )
    if options.baseline_examples < 1 or options.num_examples < 1:
        raise ValueError("--baseline_examples and --num_examples must be at least 1.")
    output_folders.create(options.results_dir, "--results_dir")
    step = max(checkpoints)
    if not report_scenes.read_lines(options.model_dir, SPLIT, step):
        command = report_scenes.evaluation_command(options.model_dir, "evaluate", SPLIT)
        if (code := call([*command, f"--gin.NUM_EXAMPLES={options.num_examples}"])) != 0:
            return code
    return _write(options, step)


def _write(options: argparse.Namespace, step: int) -> int:
    """Writes summary and page of an evaluated run, and prints them; returns the exit code."""
    import_modules("tasks.pretraining")  # registers the specifications of the evaluation
    settings, values = report_scenes.settings_of(options.model_dir / "config.gin")
    lines = report_scenes.read_lines(options.model_dir, SPLIT, step)
    reporter = Reporter(settings, options.baseline_examples)
    rows = report_scenes.rows_of(options.model_dir, SPLIT, step, lines, reporter)
    losses = read_losses(options.model_dir)
    aims = aims_of(options.kind, rows, losses)
    files.write_json(options.model_dir / SUMMARY, summary(rows, losses))
    seconds = None if options.started is None else time.time() - options.started
    run = report_scenes.run_of(options.model_dir, step, values) | {
        "command": options.train_command,
        "minutes_in_all": None if seconds is None else seconds / 60,
        "aims": aims,
    }
    with directory_lock(options.results_dir, "--results_dir"):
        path = options.results_dir / f"{PAGE}.json"
        results = result_files.read(path, "what runs on Scenes have reached", page, empty={})
        results[options.kind] = run
        result_files.write(options.results_dir, PAGE, results, page(results))
    print(describe(options.model_dir, aims))
    if seconds is not None:
        print(f"{seconds / 60:.1f} minutes in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
