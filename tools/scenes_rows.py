"""The numbers of an evaluated Scenes run, each with its baseline and a control.

Baselines are computed from the training split. What was computed is kept beside the predictions, so
that two commands that report the same predictions compute it once.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.data.sources.negative_controls import ABSENT_NOUN, SWAPPED
from ofa_jax.data.sources.single_target import SingleTarget
from ofa_jax.evaluation import eval_spec, fingerprints, postprocess, trivial_baselines
from ofa_jax.evaluation.metrics.images import psnr
from ofa_jax.evaluation.metrics.spans import exact_spans, extract_spans
from ofa_jax.evaluation.prediction_files import Line
from ofa_jax.preprocessing import images, objectives, prompts
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.utils import files, progress, state_files

from .scenes_results import THRESHOLDS, Row

Lines = Mapping[str, Sequence[Line]]
"""Task -> its predictions, without invalid records."""

FILE = "rows.json"
"""Beside the predictions of a split: its rows, and what they were computed from."""

_NEXT_IMAGE = "of another image"
SHOWN = {
    "image_captioning": ("noun_f1", "cider_d"),
    "visual_question_answering": ("accuracy",),
    "image_text_matching": ("accuracy",),
    "visual_grounding": ("acc@0.5",),
    "grounded_captioning": ("accuracy", "exact_match"),
    "object_detection": ("f1@0.5", "map@0.5"),
    "text_infilling": ("exact_spans", "exact_match"),
    "image_infilling": ("token_accuracy", "psnr"),
}
"""Task -> the metrics shown, besides all that begin with them and a slash."""


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
    _known: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def key(self, split: str) -> dict[str, Any]:
        """Returns what the rows of a split depend on, besides the predictions and the code."""
        records = self.settings.data_set.records
        kinds = sorted(set(objectives.RECORD_KIND.values()))
        return {
            "baseline_examples": self.baseline_examples,
            "seed": self.seed,
            "data": {
                f"{name}/{kind}": fingerprints.of_records(records(kind, name))
                for name in ("train", split)
                for kind in kinds
            },
        }

    def rows(self, split: str, lines: Lines) -> Iterator[Row]:
        """Yields a row per number; rows of tasks that were not evaluated have no value."""
        for task, metrics in SHOWN.items():
            found = lines.get(task)
            if not found:
                for metric in metrics:
                    yield Row(task, metric, None, threshold=_threshold(split, task, metric))
            else:
                yield from self._rows(split, task, metrics, found, lines)
            progress.advance()
        if found := lines.get(ABSENT_NOUN):
            metric = SHOWN["visual_grounding"][0]
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
            if task not in self._known:
                self._known[task] = trivial_baselines.most_frequent(self._training_spans())
            span = self._known[task]
            guesses = [trivial_baselines.fill_masks(_masked(line), span) for line in found]
            return f"{span!r} at every mask", guesses
        description, predict = trivial_baselines.BASELINES[task]
        if task not in self._known:
            references = eval_spec.find(task, self.settings).references
            self._known[task] = [references(record) for record in self._training_records(task)]
        training = self._known[task]
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


def rows_of(
    reporter: Reporter, split: str, lines: Lines, folder: pathlib.Path, commit: str
) -> list[Row]:
    """Returns the rows of a split, which are computed unless they are known.

    Args:
      reporter: computes them.
      split: that was evaluated.
      lines: the predictions.
      folder: of the predictions; it keeps the rows.
      commit: of the code; rows of changed or unknown code are not kept.
    """
    if commit == "unknown" or commit.endswith("changes"):
        return list(reporter.rows(split, lines))
    predictions = sorted(str(path) for path in folder.glob("*/predictions.jsonl"))
    key = reporter.key(split) | {
        "commit": commit,
        "predictions": fingerprints.of_records(predictions),
    }
    path = folder / FILE
    known = state_files.read_own_json(path, _is_rows)
    if known is not None and known["key"] == key:
        progress.advance(len(SHOWN))
        return [Row(**row) for row in known["rows"]]
    rows = list(reporter.rows(split, lines))
    # The rows are not lost where the run cannot be written.
    with contextlib.suppress(OSError):
        files.write_json(path, {"key": key, "rows": [dataclasses.asdict(row) for row in rows]})
    return rows


def _is_rows(value: Any) -> bool:
    """Returns whether a JSON value is what `rows_of` keeps."""
    names = {field.name for field in dataclasses.fields(Row)}
    return (
        isinstance(value, dict)
        and isinstance(value.get("key"), dict)
        and isinstance(value.get("rows"), list)
        and all(isinstance(row, dict) and set(row) == names for row in value["rows"])
    )
