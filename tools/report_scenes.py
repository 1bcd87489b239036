"""Evaluates a Scenes run by generation and writes results/scenes.md and .json.

    python -m tools.report_scenes --model_dir=runs/pretrain_scenes_full

Each number stands beside its baseline, computed from the training split, and a control that the
model must fail. Finished evaluations are not repeated.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.negative_controls import ABSENT_NOUN, SWAPPED, SWAPPED_OBJECTIVES
from ofa_jax.data.sources.single_target import SingleTarget
from ofa_jax.evaluation import eval_spec, postprocess, trivial_baselines
from ofa_jax.evaluation.metrics.images import psnr
from ofa_jax.evaluation.metrics.spans import exact_spans, extract_spans
from ofa_jax.evaluation.prediction_files import Line
from ofa_jax.preprocessing import images, objectives, prompts
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.utils import progress, renamed, text_files
from ofa_jax.utils.locks import directory_lock

from . import output_folders, scenes_results
from .command import user_command
from .scenes_results import THRESHOLDS, Row

Lines = Mapping[str, Sequence[Line]]
"""Task -> its predictions, without invalid records."""

SPLITS = ("test", "test_shifted")
_NEXT_IMAGE = "of another image"
# Metric -> the only ones shown, besides all that begin with them and a slash.
_SHOWN = {
    "image_captioning": ("noun_f1", "cider_d"),
    "visual_question_answering": ("accuracy",),
    "image_text_matching": ("accuracy",),
    "visual_grounding": ("acc@0.5",),
    "grounded_captioning": ("accuracy", "exact_match"),
    "object_detection": ("f1@0.5", "map@0.5"),
    "text_infilling": ("exact_spans", "exact_match"),
    "image_infilling": ("token_accuracy", "psnr"),
}


@dataclasses.dataclass(frozen=True)
class Reporter:
    """Makes the rows of a split from the predictions of a run.

    Attributes:
      settings: the `PretrainingSettings` of the run.
      baseline_examples: of each task, the first ones of the training split; None for all.
      seed: of random baselines.
    """

    settings: Any
    baseline_examples: int | None = None
    seed: int = 0

    def rows(self, split: str, lines: Lines) -> Iterator[Row]:
        """Yields a row per number; rows of tasks that were not evaluated have no value."""
        for task, metrics in _SHOWN.items():
            found = lines.get(task)
            if not found:
                for metric in metrics:
                    yield Row(task, metric, None, threshold=_threshold(split, task, metric))
            else:
                yield from self._rows(split, task, metrics, found, lines)
            progress.advance()
        if found := lines.get(ABSENT_NOUN):
            metric = _SHOWN["visual_grounding"][0]
            value = self._score("visual_grounding", split, found, _predictions("box", found))[
                metric
            ]
            objects = self.settings.data_set.records("objects", split)
            boxes = [as_boxes(objects[line["index"]]["object_boxes"]) for line in found]
            drawn = trivial_baselines.draw_true_box(boxes, self._rng())
            baseline = self._score("visual_grounding", split, found, drawn)[metric]
            yield Row(
                ABSENT_NOUN,
                metric,
                value,
                baseline,
                "a random object of the image",
                examples=len(found),
            )

    def _rows(
        self, split: str, task: str, metrics: Sequence[str], found: Sequence[Line], lines: Lines
    ) -> Iterator[Row]:
        kind = eval_spec.find(task, self.settings).kind
        own = self._score(task, split, found, _predictions(kind, found))
        description, guesses = self._baseline(task, found)
        baseline = self._score(task, split, found, guesses)
        control: Mapping[str, float] = {}
        where = ""
        if swapped := lines.get(task + SWAPPED):
            control, where = (
                self._score(task, split, swapped, _predictions(kind, swapped)),
                "instruction",
            )
        elif task in ("image_captioning", "object_detection", "image_infilling"):
            own_predictions = _predictions(kind, found)
            shifted = own_predictions[1:] + own_predictions[:1]
            control, where = self._score(task, split, found, shifted), "prediction"
        for metric in metrics:
            for name in (name for name in own if name.split("/")[0] == metric):
                yield Row(
                    task,
                    name,
                    own[name],
                    baseline.get(name),
                    description,
                    control.get(name),
                    f"{where} {_NEXT_IMAGE}" if name in control else "",
                    _threshold(split, task, name),
                    len(found),
                )
        if task == "image_infilling":
            # What the model could reach at best, and what pure chance reaches.
            truth = [np.asarray(line["references"], np.int32) for line in found]
            best = self._score(task, split, found, truth)
            chance = trivial_baselines.draw_codes(self.settings.image_tokenizer.num_codes)
            chance_values = self._score(task, split, found, chance([], truth, self._rng()))
            for name in metrics:
                yield Row(
                    f"{task}: the true codes",
                    name,
                    best[name],
                    chance_values[name],
                    "random codes",
                    examples=len(found),
                )

    def _score(
        self, task: str, split: str, lines: Sequence[Line], predictions: Sequence[Any]
    ) -> dict[str, float]:
        """Computes all metrics of predictions, including those of this report alone."""
        references = [line["references"] for line in lines]
        values: dict[str, float] = {}
        for metric in eval_spec.find(task, self.settings).metrics:
            values |= metric(references, predictions)
        if task == "text_infilling":
            values |= exact_spans([_masked(line) for line in lines], references, predictions)
        if task == "image_infilling":
            values |= self._psnr(split, lines, predictions)
        return {name: float(value) for name, value in values.items()}

    def _psnr(
        self, split: str, lines: Sequence[Line], predictions: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Computes the PSNR of the decoded centre; tokens that are not codes count as code 0."""
        config = self.settings.evaluation_config
        side = config.code_image_size // 8
        records = self.settings.data_set.records("images", split)
        true, generated = [], []
        for line, codes in zip(lines, predictions, strict=True):
            true.append(_center(records[line["index"]], config))
            grid = np.resize(np.maximum(codes, 0), (1, side, side))
            generated.append(self.settings.image_tokenizer.decode(grid)[0])
        return psnr(true, generated)

    def _baseline(self, task: str, found: Sequence[Line]) -> tuple[str, list[Any]]:
        """Returns the description of a task's baseline, and its predictions."""
        if task == "text_infilling":
            span = trivial_baselines.most_frequent(self._training_spans())
            guesses = [trivial_baselines.fill_masks(_masked(line), span) for line in found]
            return f"{span!r} at every mask", guesses
        description, predict = trivial_baselines.BASELINES[task]
        references = eval_spec.find(task, self.settings).references
        training = [references(record) for record in self._training_records(task)]
        return description, predict(training, [line["references"] for line in found], self._rng())

    def _training_records(self, task: str) -> Iterator[Mapping[str, Any]]:
        kind = objectives.RECORD_KIND[task]
        records = SingleTarget(self.settings.data_set.records(kind, "train"), kind)
        count = len(records)
        for index in range(min(count, self.baseline_examples or count)):
            yield records[index]

    def _training_spans(self) -> Iterator[str]:
        """Yields the masked spans of training texts; inserted masks do not count."""
        task, rng = "text_infilling", self._rng()
        config, references = self.settings.evaluation_config, eval_spec.find(task).references
        for record in self._training_records(task):
            example = objectives.OBJECTIVES[task](record, rng, config)
            line = {"instruction": config.vocabulary.decode(example["inputs"]).strip()}
            yield from filter(None, extract_spans(_masked(line), references(record)) or ())

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def _threshold(split: str, task: str, metric: str) -> float | None:
    return THRESHOLDS.get((task, metric)) if split == "test" else None


def _predictions(kind: str, lines: Sequence[Line]) -> list[Any]:
    return [postprocess.from_json(kind, line["prediction"]) for line in lines]


def _masked(line: Line) -> str:
    """Returns the masked text of an instruction."""
    before, after = (part.strip() for part in prompts.TEXT_INFILLING)
    return line["instruction"].removeprefix(before).removesuffix(after)


def _center(record: Mapping[str, Any], config: ObjectiveConfig) -> np.ndarray:
    """Returns the true centre of an image that infilling blanks, uint8 [side, side, 3]."""
    place = images.center_slice(config.infill_image_size, config.code_image_size)
    decoded = images.decode(record["image"], config.decode_options)
    image = images.resize_and_center_crop(decoded, config.infill_image_size)
    return images.to_array(image)[place, place]


# ------------------------------------------------------------------------------- files of a run


def read_lines(model_dir: pathlib.Path, split: str, step: int) -> dict[str, list[Line]]:
    """Reads the predictions of every task that was evaluated at a step."""
    found = {}
    for path in sorted(model_dir.glob(f"evaluations/{split}/{step}/*/predictions.jsonl")):
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
    expected = {*_SHOWN, ABSENT_NOUN, *(task + SWAPPED for task in SWAPPED_OBJECTIVES)}
    reporter = Reporter(settings, options.baseline_examples)
    splits, missing = {}, []
    num_tasks = len(options.splits) * len(_SHOWN)
    with progress.stage("computing baselines and controls", num_tasks, "tasks"):
        for split in options.splits:
            lines = read_lines(options.model_dir, split, step)
            splits[split] = [scenes_results.as_json(row) for row in reporter.rows(split, lines)]
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
