"""Repeats the paper's ablation on Scenes: pretraining without one objective at a time.

    python -m tools.ablations                                  # gin_configs/ablations/*.gin
    python -m tools.ablations --only full_model no_regions -- --gin.TRAIN_STEPS=500

Trains every configuration for the same number of steps, evaluates each by generation, and writes
the table to results/scenes.json and results/scenes.md. A second call continues from the checkpoints
and repeats nothing.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.utils import progress, text_files
from ofa_jax.utils.locks import directory_lock

from . import output_folders, report_scenes, scenes_results
from .command import user_command

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "gin_configs" / "ablations"
REFERENCE = "full_model"
# What the table shows of each objective; its name in the results is "<objective>/<metric>".
_NUMBERS = (
    "image_captioning/noun_f1",
    "image_captioning/cider_d",
    "visual_question_answering/accuracy",
    "image_text_matching/accuracy",
    "visual_grounding/acc@0.5",
    "grounded_captioning/accuracy",
    "object_detection/f1@0.5",
    "image_infilling/token_accuracy",
    "text_infilling/exact_match",
)


def configurations(only: Sequence[str] = ()) -> list[str]:
    """Returns the names of the ablations, the full model first.

    Raises:
      ValueError: there is no ablation of that name.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.gin"))
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(
            f"There is no ablation {', '.join(unknown)} in {FOLDER.name}/: choose from "
            f"{', '.join(names)}."
        )
    names.sort(key=lambda name: name != REFERENCE)
    return [name for name in names if not only or name in only]


def numbers_of(model_dir: pathlib.Path, split: str, step: int) -> dict[str, float]:
    """Returns the numbers that the table shows of a run; tasks not trained on are missing."""
    path = model_dir / "evaluations" / split / "metrics.json"
    metrics = text_files.read_json(path)
    found = metrics.get(str(step)) if isinstance(metrics, dict) else None
    if not isinstance(found, dict):
        raise text_files.DamagedFileError(
            f"{path} has no metrics of step {step}: delete it and run this again."
        )
    numbers = {}
    for name in _NUMBERS:
        task, metric = name.split("/")
        if metric in found.get(task, {}):
            numbers[name] = found[task][metric]
    return numbers


@user_command
def main(
    arguments: Sequence[str],
    call: Callable[[Sequence[str]], int] = report_scenes.call_python,
) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of gin files; all by default")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_examples", type=int, default=None, help="of each task; all if None")
    parser.add_argument("--runs_dir", type=pathlib.Path, default="runs/ablations")
    parser.add_argument("--results_dir", type=pathlib.Path, default="results")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="--gin.NAME=value",
        help="after --: options of the training runs",
    )
    options = parser.parse_args(arguments)
    names = configurations(options.only)
    output_folders.create(options.results_dir, "--results_dir")
    with directory_lock(options.results_dir, "--results_dir"):
        scenes_results.load(options.results_dir / "scenes.json")  # raises before the training
        return _run(options, names, arguments, call)


def _run(
    options: argparse.Namespace,
    names: Sequence[str],
    arguments: Sequence[str],
    call: Callable[[Sequence[str]], int],
) -> int:
    """Trains and evaluates the configurations; returns the exit code."""
    with progress.stage("ablations", len(names), "runs", has_terminal=False):
        code = _run_all(options, names, arguments, call)
    if code == 0:
        results = scenes_results.load(options.results_dir / "scenes.json")
        print(scenes_results.ablation_table(results["ablations"]))
    return code


def _run_all(
    options: argparse.Namespace,
    names: Sequence[str],
    arguments: Sequence[str],
    call: Callable[[Sequence[str]], int],
) -> int:
    """Trains and evaluates the configurations, one by one; returns the exit code."""
    runs: list[dict[str, Any]] = []
    for name in names:
        model_dir = options.runs_dir / name
        for command in _commands(options, name, model_dir):
            if (code := call(command)) != 0:
                typed = scenes_results.as_typed(["python", *command])
                print(
                    f"error: `{typed}` failed. Run this again to continue from there.",
                    file=sys.stderr,
                )
                return code
        step = max(storage.list_checkpoints(str(model_dir)), default=None)
        if step is None:
            raise ValueError(f"There is no checkpoint in {model_dir}, though training has ended.")
        runs.append(
            {
                "name": name,
                "steps": step,
                "numbers": numbers_of(model_dir, options.split, step),
            }
        )
        _write(options, runs, arguments)
        progress.advance()
    return 0


def _commands(
    options: argparse.Namespace, name: str, model_dir: pathlib.Path
) -> Sequence[Sequence[str]]:
    """Returns the commands that train and evaluate a configuration, without the interpreter."""
    train = [
        "-m",
        "ofa_jax.train",
        f"--gin_file={FOLDER / f'{name}.gin'}",
        f"--gin.MODEL_DIR='{model_dir}'",
        *options.options,
    ]
    evaluate = [
        *report_scenes.evaluation_command(model_dir, "evaluate", options.split),
        f"--gin.NUM_EXAMPLES={options.num_examples}",
    ]
    return train, evaluate


def _write(
    options: argparse.Namespace, runs: Sequence[dict[str, Any]], arguments: Sequence[str]
) -> None:
    """Writes the table after every run, so that an interrupted command leaves one."""
    results = scenes_results.load(options.results_dir / "scenes.json")
    results["ablations"] = {
        "split": options.split,
        "command": scenes_results.as_typed(["python", "-m", "tools.ablations", *arguments]),
        "commit": report_scenes.commit(),
        "runs": list(runs),
    }
    scenes_results.save(options.results_dir, results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
