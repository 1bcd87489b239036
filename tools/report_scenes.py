"""Evaluates a Scenes run by generation and writes results/scenes.md and .json.

    python -m tools.report_scenes --model_dir=runs/pretrain_scenes_full

Each number stands beside its baseline, computed from the training split, and a control that the
model must fail. Finished evaluations are not repeated.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.negative_controls import ABSENT_NOUN, SWAPPED, SWAPPED_OBJECTIVES
from ofa_jax.evaluation.prediction_files import Line
from ofa_jax.utils import progress, renamed, text_files
from ofa_jax.utils.locks import directory_lock

from . import output_folders, scenes_results, scenes_rows
from .command import user_command
from .scenes_results import Row
from .scenes_rows import SHOWN, Lines, Reporter

SPLITS = ("test", "test_shifted")


def predictions_of(model_dir: pathlib.Path, split: str, step: int) -> pathlib.Path:
    """Returns the folder of the predictions of all tasks."""
    return model_dir / "evaluations" / split / str(step)


def read_lines(model_dir: pathlib.Path, split: str, step: int) -> dict[str, list[Line]]:
    """Reads the predictions of every task that was evaluated at a step."""
    found = {}
    for path in sorted(predictions_of(model_dir, split, step).glob("*/predictions.jsonl")):
        lines = []
        for number, line in enumerate(text_files.read_lines(path), 1):
            try:
                lines.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise text_files.DamagedFileError(
                    f"{path}, line {number} is damaged ({error}): delete the folder "
                    f"{path.parent} and run this again."
                ) from error
        found[path.parent.name] = [line for line in lines if "error" not in line]
    return found


def rows_of(
    model_dir: pathlib.Path, split: str, step: int, lines: Lines, reporter: Reporter
) -> list[Row]:
    """Returns the rows of a split of a run, see `scenes_rows.rows_of`."""
    folder = predictions_of(model_dir, split, step)
    return scenes_rows.rows_of(reporter, split, lines, folder, commit())


def settings_of(config: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Returns the settings that a run's gin file makes, and its seed and steps."""
    import gin

    from ofa_jax.cli import gin_files, gin_registry
    from ofa_jax.model.named_config import model_config
    from ofa_jax.training.build import build_run

    gin.clear_config()
    gin_registry.register({"train": build_run, "model_config": model_config})
    gin_files.parse(config, ["."], skip_unknown=True)
    values = {
        "seed": gin_registry.bound_value("train.seed"),
        "total_steps": gin_registry.bound_value("LoopConfig.total_steps"),
    }
    return gin_registry.bound_value("train.settings"), values


def commit(folder: pathlib.Path = pathlib.Path(__file__).parent) -> str:
    """Returns the commit of the code in a folder, and whether the code has changed since."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
        ).stdout.strip()

    try:
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":(top)",
            ":(top,exclude)results",
        )
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run_of(model_dir: pathlib.Path, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the page says about a run."""
    return {
        **_training_of(model_dir, step),
        "parameters": storage.count_parameters(str(model_dir)),
        "commit": commit(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        **values,
    }


def _training_of(model_dir: pathlib.Path, step: int) -> dict[str, Any]:
    """Returns steps, minutes and checkpoint of a run."""
    from ofa_jax.training.loop import TRAINED_SECONDS

    seconds = storage.read_run_metadata(str(model_dir)).get(TRAINED_SECONDS)
    return {
        "steps": step,
        "minutes_trained": None if seconds is None else seconds / 60,
        "checkpoint": f"{model_dir}/checkpoints/{step}",
    }


def evaluation_command(model_dir: pathlib.Path, gin_file: str, split: str) -> list[str]:
    """Returns the command that evaluates a split, without the interpreter."""
    return [
        "-m",
        "ofa_jax.evaluate",
        f"--gin_file={model_dir / 'config.gin'}",
        f"--gin_file=gin_configs/runs/{gin_file}.gin",
        f"--gin.SPLIT='{split}'",
    ]


def call_python(command: Sequence[str]) -> int:
    """Runs a command with this interpreter; returns its exit code."""
    return subprocess.call([sys.executable, *command])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.report_scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_dir", type=pathlib.Path, default="runs/pretrain_scenes_full")
    parser.add_argument("--results_dir", type=pathlib.Path, default="results")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS))
    parser.add_argument(
        "--baseline_examples",
        type=int,
        default=5000,
        help="number of training examples that the baselines see",
    )
    parser.add_argument(
        "--train_command",
        default="bash launch/local.sh full",
        help="the command that made the run, for the page",
    )
    parser.add_argument(
        "--stage_dirs",
        *(f"--{name}" for name in renamed.former_names("stage_dirs", renamed.TOOL_FLAGS)),
        nargs="+",
        type=pathlib.Path,
        default=[],
        help="run directories of the earlier stages, for the page",
    )
    parser.add_argument(
        "options", nargs="*", metavar="--gin.NAME=value", help="after --: options of the evaluation"
    )
    return parser.parse_args(arguments)


def _results_of_splits(
    options: argparse.Namespace, settings: Any, step: int
) -> tuple[dict[str, Any], list[str]]:
    """Returns the rows of every split as JSON, and a sentence per task that was not evaluated."""
    from ofa_jax.utils.modules import import_modules

    import_modules("tasks.scenes_negative_controls")  # registers the specifications
    expected = {*SHOWN, ABSENT_NOUN, *(task + SWAPPED for task in SWAPPED_OBJECTIVES)}
    reporter = Reporter(settings, options.baseline_examples)
    splits, missing = {}, []
    num_tasks = len(options.splits) * len(SHOWN)
    with progress.stage("computing baselines and controls", num_tasks, "tasks"):
        for split in options.splits:
            lines = read_lines(options.model_dir, split, step)
            rows = rows_of(options.model_dir, split, step, lines, reporter)
            splits[split] = [scenes_results.as_json(row) for row in rows]
            absent = sorted(expected - {*lines})
            missing += [f"{task} was not evaluated on {split}." for task in absent]
    return splits, missing


@user_command
def main(arguments: Sequence[str], call: Callable[[Sequence[str]], int] = call_python) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    _check(options)
    output_folders.create(options.results_dir, "--results_dir")
    with directory_lock(options.results_dir, "--results_dir"):
        scenes_results.load(options.results_dir / "scenes.json")  # raises before the evaluations
        return _run(options, call)


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError if there is no trained run in a folder."""
    for path in (options.model_dir, *options.stage_dirs):
        if not storage.list_checkpoints(str(path)) or not (path / "config.gin").is_file():
            raise ValueError(
                f"there is no trained run in {path}: train it with `bash launch/local.sh full`, or "
                "give --model_dir."
            )
    if options.baseline_examples < 1:
        raise ValueError("--baseline_examples must be at least 1.")


def _run(options: argparse.Namespace, call: Callable[[Sequence[str]], int]) -> int:
    """Evaluates the run and writes the page; returns the exit code."""
    config = options.model_dir / "config.gin"
    trained = {
        path: storage.list_checkpoints(str(path))
        for path in (options.model_dir, *options.stage_dirs)
    }
    commands = []
    with progress.stage("evaluations", len(options.splits), "splits", has_terminal=False) as stage:
        for split in options.splits:
            command = evaluation_command(options.model_dir, "evaluate_scenes", split)
            commands.append([*command, *options.options])
            if (code := call(commands[-1])) != 0:
                return code
            stage.advance()
    # Only now: the evaluations needed the memory.
    settings, values = settings_of(config)
    step = max(trained[options.model_dir])
    splits, missing = _results_of_splits(options, settings, step)
    about = run_of(options.model_dir, step, values)
    about["stages"] = [_training_of(path, max(trained[path])) for path in options.stage_dirs]
    about["commands"] = [
        options.train_command,
        *(scenes_results.as_typed(["python", *command]) for command in commands),
    ]
    results = scenes_results.load(options.results_dir / "scenes.json")
    results |= {"run": about, "splits": splits, "missing": missing}
    scenes_results.save(options.results_dir, results)
    print(scenes_results.page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
