"""Does it learn? Evaluates a run over Scenes by generation and writes results/scenes.md and .json.

    python -m tools.report_scenes --model_dir=runs/pretrain_scenes_full

Each number stands beside its baseline, computed from the training split, and a control in which the
model must fail. What is evaluated already is not evaluated again.
"""

import argparse
import copy
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
from ofa_jax.data.sources.negative_controls import ABSENT_NOUN, SWAPPED
from ofa_jax.data.sources.single_target import SingleTarget
from ofa_jax.evaluation import eval_spec, postprocess, trivial_baselines
from ofa_jax.evaluation.metrics.images import psnr
from ofa_jax.evaluation.metrics.spans import exact_spans, extract_spans
from ofa_jax.preprocessing import images, objectives, prompts
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from tools import scenes_results
from tools.scenes_results import AIMS, Row

Line = Mapping[str, Any]
Lines = Mapping[str, Sequence[Line]]
"""Task -> its predictions, the bad records left out."""

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
    """Makes the rows of a split from what a run has answered.

    Attributes:
      settings: the `PretrainingSettings` of the run.
      baseline_examples: of each task, the first ones of the training split; None for all.
      seed: of baselines that draw.
    """

    settings: Any
    baseline_examples: int | None = None
    seed: int = 0

    def rows(self, split: str, lines: Lines) -> Iterator[Row]:
        """A row for every number; where a task was not evaluated, rows without a value."""
        for task, metrics in _SHOWN.items():
            found = lines.get(task)
            if not found:
                for metric in metrics:
                    yield Row(task, metric, None, aim=_aim(split, task, metric))
                continue
            yield from self._rows(split, task, metrics, found, lines)
        if found := lines.get(ABSENT_NOUN):
            metric = _SHOWN["visual_grounding"][0]
            value = self._judge("visual_grounding", split, found, _given("box", found))[metric]
            objects = self.settings.data_set.records("objects", split)
            boxes = [as_boxes(objects[line["index"]]["object_boxes"]) for line in found]
            drawn = trivial_baselines.draw_true_box(boxes, self._rng())
            baseline = self._judge("visual_grounding", split, found, drawn)[metric]
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
        kind = eval_spec.find(task).kind
        own = self._judge(task, split, found, _given(kind, found))
        who, guessed = self._blind(task, found)
        baseline = self._judge(task, split, found, guessed)
        control: Mapping[str, float] = {}
        where = ""
        if swapped := lines.get(task + SWAPPED):
            control, where = self._judge(task, split, swapped, _given(kind, swapped)), "asked"
        elif task in ("image_captioning", "object_detection", "image_infilling"):
            given = _given(kind, found)
            control, where = self._judge(task, split, found, given[1:] + given[:1]), "answer"
        for metric in metrics:
            for name in (name for name in own if name.split("/")[0] == metric):
                yield Row(
                    task,
                    name,
                    own[name],
                    baseline.get(name),
                    who,
                    control.get(name),
                    f"{where} {_NEXT_IMAGE}" if name in control else "",
                    _aim(split, task, name),
                    len(found),
                )
        if task == "image_infilling":
            # What the model could reach at best, and what pure chance reaches.
            truth = [np.asarray(line["references"], np.int32) for line in found]
            best = self._judge(task, split, found, truth)
            chance = trivial_baselines.draw_codes(self.settings.image_tokenizer.num_codes)
            drawn = self._judge(task, split, found, chance([], truth, self._rng()))
            for name in metrics:
                yield Row(
                    f"{task}: the true codes",
                    name,
                    best[name],
                    drawn[name],
                    "random codes",
                    examples=len(found),
                )

    def _judge(
        self, task: str, split: str, lines: Sequence[Line], given: Sequence[Any]
    ) -> dict[str, float]:
        """All metrics of some answers, those that only this report knows among them."""
        references = [line["references"] for line in lines]
        values: dict[str, float] = {}
        for metric in eval_spec.find(task).metrics:
            values |= metric(references, given)
        if task == "text_infilling":
            values |= exact_spans([_masked(line) for line in lines], references, given)
        if task == "image_infilling":
            values |= self._psnr(split, lines, given)
        return {name: float(value) for name, value in values.items()}

    def _psnr(
        self, split: str, lines: Sequence[Line], given: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Of the middle that codes stand for; what is no code is shown as code 0."""
        config = self.settings.evaluation_config
        side = config.code_image_size // 8
        records = self.settings.data_set.records("images", split)
        true, made = [], []
        for line, codes in zip(lines, given, strict=True):
            true.append(_middle(records[line["index"]], config))
            grid = np.resize(np.maximum(codes, 0), (1, side, side))
            made.append(self.settings.image_tokenizer.decode(grid)[0])
        return psnr(true, made)

    def _blind(self, task: str, found: Sequence[Line]) -> tuple[str, list[Any]]:
        """What a task's baseline is, and its answers."""
        if task == "text_infilling":
            span = trivial_baselines.most_frequent(self._training_spans())
            guessed = [trivial_baselines.fill_masks(_masked(line), span) for line in found]
            return f"{span!r} at every mask", guessed
        who, answer = trivial_baselines.BASELINES[task]
        references = eval_spec.find(task).references
        training = [references(record) for record in self._training_records(task)]
        return who, answer(training, [line["references"] for line in found], self._rng())

    def _training_records(self, task: str) -> Iterator[Mapping[str, Any]]:
        kind = objectives.RECORD_KIND[task]
        records = SingleTarget(self.settings.data_set.records(kind, "train"), kind)
        count = len(records)
        for index in range(min(count, self.baseline_examples or count)):
            yield records[index]

    def _training_spans(self) -> Iterator[str]:
        """What was masked in training texts; inserted masks hide nothing and do not count."""
        task, rng = "text_infilling", self._rng()
        config, references = self.settings.evaluation_config, eval_spec.find(task).references
        for record in self._training_records(task):
            example = objectives.OBJECTIVES[task](record, rng, config)
            line = {"instruction": config.vocabulary.decode(example["inputs"]).strip()}
            yield from filter(None, extract_spans(_masked(line), references(record)) or ())

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def _aim(split: str, task: str, metric: str) -> float | None:
    return AIMS.get((task, metric)) if split == "test" else None


def _given(kind: str, lines: Sequence[Line]) -> list[Any]:
    return [postprocess.from_json(kind, line["prediction"]) for line in lines]


def _masked(line: Line) -> str:
    """The masked text of an instruction."""
    before, after = (part.strip() for part in prompts.TEXT_INFILLING)
    return line["instruction"].removeprefix(before).removesuffix(after)


def _middle(record: Mapping[str, Any], config: ObjectiveConfig) -> np.ndarray:
    """The true middle of an image that infilling blanks, uint8 [side, side, 3]."""
    place = images.center_slice(config.infill_image_size, config.code_image_size)
    image = images.resize_and_center_crop(images.decode(record["image"]), config.infill_image_size)
    return images.to_array(image)[place, place]


# ------------------------------------------------------------------------------- files of a run


def read_lines(model_dir: pathlib.Path, split: str, step: int) -> dict[str, list[Line]]:
    """The predictions of every task that was evaluated on a step."""
    found = {}
    for path in sorted(model_dir.glob(f"evaluations/{split}/{step}/*/predictions.jsonl")):
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
        found[path.parent.name] = [line for line in lines if "error" not in line]
    return found


def settings_of(config: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """The settings that a run's gin file makes, and its seed and steps."""
    import gin

    from ofa_jax.cli import gin_files, gin_registry
    from ofa_jax.model.named_config import model_config
    from ofa_jax.training.build import build_run

    gin.clear_config()
    gin_registry.register({"train": build_run, "model_config": model_config})
    gin_files.parse(config, ["."], skip_unknown=True)
    # Copying a reference makes what it refers to.
    settings = copy.deepcopy(gin.query_parameter("train.settings"))
    values = {
        "seed": copy.deepcopy(gin.query_parameter("train.seed")),
        "total_steps": copy.deepcopy(gin.query_parameter("LoopConfig.total_steps")),
    }
    return settings, values


def commit(folder: pathlib.Path = pathlib.Path(__file__).parent) -> str:
    """Of the code in a folder, and whether it was changed since; results are not code."""

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
    """What the page says about a run."""
    return {
        **_training_of(model_dir, step),
        "parameters": storage.count_parameters(str(model_dir)),
        "commit": commit(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        **values,
    }


def _training_of(model_dir: pathlib.Path, step: int) -> dict[str, Any]:
    """How long a run was trained."""
    from ofa_jax.training.loop import TRAINED_SECONDS

    seconds = storage.read_run(str(model_dir)).get(TRAINED_SECONDS)
    return {
        "steps": step,
        "minutes_trained": None if seconds is None else seconds / 60,
        "checkpoint": f"{model_dir}/checkpoints/{step}",
    }


def evaluation_command(model_dir: pathlib.Path, gin_file: str, split: str) -> list[str]:
    """The command that evaluates a split, without the interpreter."""
    return [
        "-m",
        "ofa_jax.evaluate",
        f"--gin_file={model_dir / 'config.gin'}",
        f"--gin_file=gin_configs/runs/{gin_file}.gin",
        f"--gin.SPLIT='{split}'",
    ]


def call_python(command: Sequence[str]) -> int:
    """Runs a command of this interpreter; its exit code."""
    return subprocess.call([sys.executable, *command])


def main(arguments: Sequence[str], call: Callable[[Sequence[str]], int] = call_python) -> int:
    """The command line; returns the exit code."""
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
        help="of the training split, for the baselines",
    )
    parser.add_argument(
        "--train_command",
        default="bash launch/local.sh full",
        help="how the run was made, for the page",
    )
    parser.add_argument(
        "--lesson_dirs",
        nargs="+",
        type=pathlib.Path,
        default=[],
        help="of the runs that the run began from, for the page",
    )
    parser.add_argument(
        "options", nargs="*", metavar="--gin.NAME=value", help="after --: options of the evaluation"
    )
    options = parser.parse_args(arguments)
    config = options.model_dir / "config.gin"
    trained = {path: storage.steps(str(path)) for path in (options.model_dir, *options.lesson_dirs)}
    lacking = [
        path for path, steps in trained.items() if not steps or not (path / "config.gin").is_file()
    ]
    if lacking:
        print(
            f"error: there is no trained run in {lacking[0]}: train it with `bash "
            "launch/local.sh full`, or give --model_dir.",
            file=sys.stderr,
        )
        return 2
    commands = []
    for split in options.splits:
        command = [
            *evaluation_command(options.model_dir, "evaluate_scenes", split),
            *options.options,
        ]
        commands.append(command)
        if (code := call(command)) != 0:
            return code
    # Only now: the evaluations have had the memory for themselves.
    from tasks import pretraining, scenes_negative_controls

    settings, values = settings_of(config)
    pretraining.configure(settings)
    step = max(trained[options.model_dir])
    reporter = Reporter(settings, options.baseline_examples)
    splits, missing = {}, []
    for split in options.splits:
        lines = read_lines(options.model_dir, split, step)
        rows = list(reporter.rows(split, lines))
        splits[split] = [scenes_results.as_json(row) for row in rows]
        wanted = {
            *_SHOWN,
            ABSENT_NOUN,
            *(task + SWAPPED for task in scenes_negative_controls.QUESTIONS),
        }
        missing += [f"{task} was not evaluated on {split}." for task in sorted(wanted - {*lines})]
    about = run_of(options.model_dir, step, values)
    about["lessons"] = [
        _training_of(lesson, max(trained[lesson])) for lesson in options.lesson_dirs
    ]
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
