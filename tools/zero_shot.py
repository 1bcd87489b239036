r"""Measures a Scenes run on unseen tasks, and on other wordings of the tasks it was trained on.

    python -m tools.zero_shot --model_dir=runs/pretrain_scenes_full
    python -m tools.zero_shot --model_dir=RUN --without=RUN_WITHOUT_REGION_TASKS \
        --wordings=RUN_TRAINED_WITH_SEVERAL_WORDINGS --seeds 0 1 2

Evaluates by generation the tasks of tasks/scenes_unseen.py without any training, and after
fine-tuning on 100 examples of each; beside the most frequent answer and, if given, a run without
the region tasks. Then evaluates the objectives with other wordings of their instructions, also of a
run with several wordings (`scenes_settings.prompts`). Writes results/zero_shot.json, .md and .svg.
A second call continues and repeats nothing that is finished.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.training.run import TRAINED_SECONDS
from ofa_jax.utils import progress, text_files
from ofa_jax.utils.locks import directory_lock

from . import output_folders, report_scenes, scenes_results, zero_shot_results
from .command import user_command

Call = Callable[[Sequence[str]], int]
# As in tasks/scenes_unseen.py, which imports seqio.
TASKS = ("grounded_question_answering", "region_neighbour", "region_in_style", "region_yes_no")
FEW_EXAMPLES = (10, 100, 1000)
AMONG_ANSWERS = "_among_answers"
NUMBERS = (
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
"""What is compared between the wordings, "<objective>/<metric>"."""


class CommandFailedError(Exception):
    """A training or an evaluation has failed and printed why."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


@user_command
def main(arguments: Sequence[str], call: Call = report_scenes.call_python) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    for role, model_dir in _runs(options).items():
        _check_run(role, model_dir)
    output_folders.create(options.results_dir, "--results_dir")
    with directory_lock(options.results_dir, "--results_dir"):
        try:
            results = Measurement(options, call).run(arguments)
        except CommandFailedError as error:
            return error.code
    print(zero_shot_results.page(results))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.zero_shot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_dir", type=pathlib.Path, default="runs/pretrain_scenes_full")
    parser.add_argument("--without", type=pathlib.Path, help="a run without the region tasks")
    parser.add_argument("--wordings", type=pathlib.Path, help="a run with several wordings")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_examples", type=int, default=None, help="of each task; all if None")
    parser.add_argument(
        "--examples",
        type=int,
        choices=(0, *FEW_EXAMPLES),
        default=100,
        help="training examples of each unseen task; 0 fine-tunes nothing",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the fine-tuning")
    parser.add_argument("--runs_dir", type=pathlib.Path, default="runs/zero_shot")
    parser.add_argument("--results_dir", type=pathlib.Path, default="results")
    parser.add_argument(
        "options", nargs="*", metavar="--gin.NAME=value", help="after --: options of fine-tuning"
    )
    return parser.parse_args(arguments)


def _runs(options: argparse.Namespace) -> dict[str, pathlib.Path]:
    """Returns role -> run directory, of the runs that are compared."""
    given = {
        "model": options.model_dir,
        "without": options.without,
        "wordings": options.wordings,
    }
    return {role: path for role, path in given.items() if path is not None}


def _check_run(role: str, model_dir: pathlib.Path) -> None:
    """Raises ValueError if there is no trained run in a folder."""
    if not storage.list_checkpoints(str(model_dir)) or not (model_dir / "config.gin").is_file():
        option = "--model_dir" if role == "model" else f"--{role}"
        raise ValueError(
            f"there is no trained run in {model_dir}: train it with `bash launch/local.sh`, or "
            f"give another {option}."
        )


def _image_size(model_dir: pathlib.Path) -> int:
    """Returns the side of a run's images in pixels."""
    settings, _ = report_scenes.settings_of(model_dir / "config.gin")
    return int(settings.evaluation_config.image_size)


def _minutes(model_dir: pathlib.Path) -> float | None:
    """Returns how long a run has trained; None for checkpoints that training did not write."""
    try:
        seconds = storage.read_run_metadata(str(model_dir)).get(TRAINED_SECONDS)
    except FileNotFoundError:
        return None
    return None if seconds is None else seconds / 60


class Measurement:
    """Runs the evaluations and fine-tunings, and collects their numbers."""

    def __init__(self, options: argparse.Namespace, call: Call):
        self._options = options
        self._call = call
        self._runs = _runs(options)
        self._steps = {
            role: max(storage.list_checkpoints(str(path))) for role, path in self._runs.items()
        }
        self._image_flags = {
            role: f"--gin.UNSEEN_IMAGE_SIZE={_image_size(path)}"
            for role, path in self._runs.items()
        }

    def run(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Runs everything; the results are written after each part.

        Raises:
          CommandFailedError: a training or an evaluation has failed.
        """
        typed = scenes_results.as_typed(["python", "-m", "tools.zero_shot", *arguments])
        results: dict[str, Any] = {
            "split": self._options.split,
            "seeds": self._options.seeds,
            "examples": self._options.examples,
            "commands": [typed],
            "commit": report_scenes.commit(),
            "runs": {role: self._about(role) for role in self._runs},
            "tasks": {},
            "wordings": {},
        }
        tuned = [role for role in self._runs if role != "wordings" and self._options.examples]
        reworded = [role for role in self._runs if role != "without"]
        num_parts = len(self._runs) + len(reworded)
        num_parts += len(tuned) * len(TASKS) * len(self._options.seeds)
        with progress.stage("unseen tasks", num_parts, "evaluations", has_terminal=False):
            for role in self._runs:
                self._evaluate_unseen(role, results)
            for role in tuned:
                self._fine_tune(role, results)
            for role in reworded:
                self._evaluate_wordings(role, results)
        return results

    def _about(self, role: str) -> dict[str, Any]:
        return {
            "model_dir": str(self._runs[role]),
            "steps": self._steps[role],
            "minutes": _minutes(self._runs[role]),
        }

    def _execute(self, command: Sequence[str]) -> None:
        if (code := self._call(command)) != 0:
            typed = scenes_results.as_typed(["python", *command])
            print(
                f"error: `{typed}` failed. Run this again to continue from there.", file=sys.stderr
            )
            raise CommandFailedError(code)

    def _finish_part(self, results: Mapping[str, Any]) -> None:
        """Writes the results so far."""
        zero_shot_results.save(self._options.results_dir, results)
        progress.advance()

    def _folder(self, role: str) -> pathlib.Path:
        """Returns the folder of everything that is made from a run."""
        # Two runs may have the same name in different folders.
        return self._options.runs_dir / f"{role}_{self._runs[role].name}"

    def _evaluate(
        self, model_dir: pathlib.Path, folder: pathlib.Path, gin_file: str, *flags: str
    ) -> Mapping[str, Mapping[str, float]]:
        """Evaluates a run into a folder; returns task -> metric -> value at its last step."""
        # Predictions for other numbers of examples are not compared, and those in the run's own
        # folder stay as they are.
        split, number = self._options.split, self._options.num_examples
        directory = folder / f"evaluation_{split}_{number or 'all'}"
        command = report_scenes.evaluation_command(model_dir, gin_file, split)
        self._execute(
            [
                *command,
                f"--gin.NUM_EXAMPLES={number}",
                f"--gin.evaluate.directory='{directory}'",
                *flags,
            ]
        )
        step = max(storage.list_checkpoints(str(model_dir)))
        path = directory / "metrics.json"
        metrics = text_files.read_json(path)
        found = metrics.get(str(step)) if isinstance(metrics, dict) else None
        if not isinstance(found, dict):
            raise text_files.DamagedFileError(
                f"{path} has no metrics of step {step}: delete it and run this again."
            )
        return found

    def _evaluate_unseen(self, role: str, results: dict[str, Any]) -> None:
        """Adds the zero-shot accuracy of a run on each unseen task."""
        found = self._evaluate(
            self._runs[role], self._folder(role), "evaluate_unseen", self._image_flags[role]
        )
        if not results["tasks"]:
            results["tasks"] = _majorities(self._runs[role], self._options)
        for name, task in results["tasks"].items():
            own = found[name]
            task["zero_shot"][role] = own["accuracy"]
            task["by_type"][role] = {
                metric.removeprefix("accuracy/"): value
                for metric, value in own.items()
                if metric.startswith("accuracy/")
            }
            if name + AMONG_ANSWERS in found:
                task["among_answers"][role] = found[name + AMONG_ANSWERS]["accuracy"]
        self._finish_part(results)

    def _fine_tune(self, role: str, results: dict[str, Any]) -> None:
        """Adds the accuracy of a run after a few examples of each unseen task."""
        for name, task in results["tasks"].items():
            for seed in self._options.seeds:
                few = f"{name}_{self._options.examples}"
                model_dir = self._folder(role) / f"{few}_seed{seed}"
                self._execute(
                    [
                        "-m",
                        "ofa_jax.train",
                        f"--gin_file={self._runs[role] / 'config.gin'}",
                        "--gin_file=gin_configs/runs/finetune_unseen.gin",
                        f"--gin.MODEL_DIR='{model_dir}'",
                        f"--gin.INITIAL_CHECKPOINT_PATH='{self._runs[role]}'",
                        f"--gin.UNSEEN_TASKS='{few}'",
                        self._image_flags[role],
                        f"--gin.SEED={seed}",
                        *self._options.options,
                    ]
                )
                flags = f"--gin.UNSEEN_TASKS='{name}'", self._image_flags[role]
                found = self._evaluate(model_dir, model_dir, "evaluate_unseen", *flags)
                tuned = task["fine_tuned"].setdefault(role, {})
                tuned[str(seed)] = found[name]["accuracy"]
                self._finish_part(results)

    def _evaluate_wordings(self, role: str, results: dict[str, Any]) -> None:
        """Adds the numbers of a run with each kind of wording."""
        folder = self._folder(role)
        published = self._evaluate(self._runs[role], folder, "evaluate")
        other = self._evaluate(self._runs[role], folder, "evaluate_reworded")
        rows = {}
        for number in NUMBERS:
            objective, metric = number.split("/")
            if metric in published.get(objective, {}):
                rows[number] = {
                    "published": published[objective][metric],
                    "trained": other[f"{objective}_trained_wordings"].get(metric),
                    "unseen": other[f"{objective}_unseen_wordings"].get(metric),
                }
        results["wordings"][role] = rows
        self._finish_part(results)


def _majorities(model_dir: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns task -> its number of examples and the accuracy of the most frequent answer."""
    from ofa_jax.data import seqio_bridge
    from ofa_jax.evaluation import trivial_baselines
    from ofa_jax.evaluation.metrics.vqa import vqa_accuracy
    from ofa_jax.utils.modules import import_modules

    import_modules("tasks.scenes_unseen")
    settings, _ = report_scenes.settings_of(model_dir / "config.gin")
    from tasks.scenes_unseen import references

    found = {}
    for name in TASKS:
        known = {}
        for split in ("train", options.split):
            (task,) = seqio_bridge.weighted_tasks(name, split, settings, training=False) or ()
            count = len(task.records)
            if split == options.split and options.num_examples is not None:
                count = min(count, options.num_examples)
            known[split] = [references(task.records[index]) for index in range(count)]
        own = known[options.split]
        guesses = trivial_baselines.most_frequent_answer(known["train"], own, None)
        found[name] = {
            "count": len(own),
            "majority": vqa_accuracy(own, guesses)["accuracy"],
            "zero_shot": {},
            "among_answers": {},
            "by_type": {},
            "fine_tuned": {},
        }
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
