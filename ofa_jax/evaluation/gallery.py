"""A gallery: some examples of a task with image, target and prediction, for people to look at.

    predictions.jsonl + records ─▶ the worst and the best examples ─▶ gallery.json ─▶ the report

Boxes are in pixels of the stored image; images are stored in the file, as data URIs.
"""

import base64
import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from ofa_jax.data.sampling import read_example
from ofa_jax.evaluation.eval_sources import RecordEvalSource, box_transform_of
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.evaluator import EvalTask
from ofa_jax.evaluation.metrics import inputs
from ofa_jax.evaluation.prediction_files import PREDICTIONS, Line, read_lines
from ofa_jax.evaluation.scoring import compute_metrics
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.examples import Example
from ofa_jax.preprocessing.records import Record
from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.utils import files

GALLERY_FILE = "gallery.json"
"""Beside the predictions of an evaluation."""
GALLERIES = "galleries"
"""Folder in a run directory with the galleries of validations: `<split>/<step>/<task>.json`."""
_LONGEST_SIDE = 384
_MAX_TEXT = 600
_BINS = re.compile(r"<bin_(\d+)>\s*<bin_(\d+)>\s*<bin_(\d+)>\s*<bin_(\d+)>")


@dataclasses.dataclass(frozen=True)
class LabelledBox:
    """A box to draw: x0, y0, x1, y1 in pixels of the stored image, and a label or ""."""

    corners: tuple[float, float, float, float]
    label: str = ""


@dataclasses.dataclass(frozen=True)
class GalleryExample:
    """An example as the report shows it; all images are data URIs.

    Attributes:
      index, id: of the record.
      instruction, target, prediction: as text.
      score: the model's; None if it is not finite.
      quality: the task's main metric on this example alone, or another one where the main metric
        needs a corpus; None without references.
      metric: name of that metric; None if there is none.
      image: the stored image; None without one.
      width, height: of the stored image in pixels; boxes are in these units.
      given_boxes: regions in the instruction.
      target_boxes, predicted_boxes: of truth and prediction.
      truth_image, reconstruction, predicted_image: for image outputs: the true pixels, what the
        image tokenizer makes of the true codes, and what it makes of the predicted ones.
    """

    index: int
    id: str
    instruction: str
    target: str
    prediction: str
    score: float | None
    quality: float | None
    image: str | None = None
    width: int = 0
    height: int = 0
    given_boxes: Sequence[LabelledBox] = ()
    target_boxes: Sequence[LabelledBox] = ()
    predicted_boxes: Sequence[LabelledBox] = ()
    truth_image: str | None = None
    reconstruction: str | None = None
    predicted_image: str | None = None
    metric: str | None = None


class Quality(NamedTuple):
    """The value of a metric on one example."""

    metric: str
    value: float


Rated = tuple[Quality, Line]


@dataclasses.dataclass(frozen=True)
class GalleryMaker:
    """Makes the gallery of one task.

    Attributes:
      spec: of the task.
      source: its examples; tasks in seqio's own order have no gallery.
      image_tokenizer: decodes image codes; None to show codes as text.
    """

    spec: EvalSpec
    source: RecordEvalSource
    image_tokenizer: ImageTokenizer | None = None

    def make(self, lines: Sequence[Line], count: int = 12) -> list[GalleryExample]:
        """Returns the worst and the best examples, the worst first, then those without a metric.

        Args:
          lines: predictions; lines with an error are left out.
          count: number of examples.
        """
        rated: list[Rated] = []
        unrated: list[tuple[None, Line]] = []
        for line in lines:
            if "error" in line:
                continue
            if (quality := self.rate(line)) is None:
                unrated.append((None, line))
            else:
                rated.append((quality, line))
        made = []
        for quality, line in [*_worst_and_best(rated, count), *unrated][:count]:
            try:
                made.append(self._example(line, quality))
            except Exception as error:  # noqa: BLE001  one odd record must not cost the others
                # The data may have changed since the predictions were made.
                logging.warning("No gallery example for record %s: %s", line["id"], error)
        return made

    def rate(self, line: Line) -> Quality | None:
        """Returns the metric of one example with its name; None without a reference.

        Metrics of a corpus say nothing of one example. Where the main metric is one of them, the
        spec's `example_metric` takes its place, or the first value of the others.
        """
        spec = self.spec.replace(
            metrics=tuple(own for own in self.spec.metrics if not inputs.needs_corpus(own)),
            main_metric=self.spec.example_metric or self.spec.main_metric,
        )
        scores = compute_metrics(spec, [line])
        if scores.main_metric is None:
            return None
        return Quality(scores.main_metric, scores.metrics[scores.main_metric])

    def _example(self, line: Line, quality: Quality | None) -> GalleryExample:
        """Returns an example with its image and boxes."""
        index, kind = line["index"], self.spec.kind
        record, example = read_example(self.source.task, index, self.source.example_rng(index))
        image = self._decode_image(record)
        shown: dict[str, Any] = {}
        if image is not None:
            shown |= self._image_fields(image, line, record, example)
        if kind == "codes" and self.image_tokenizer is not None:
            shown |= self._code_images(image, line, example)
        return GalleryExample(
            index=index,
            id=line["id"],
            instruction=_shorten(line["instruction"]),
            target=_shorten(_target_text(kind, line["references"])),
            prediction=_shorten(_as_text(kind, line["prediction"])),
            score=line["score"],
            quality=None if quality is None else quality.value,
            metric=None if quality is None else quality.metric,
            **shown,
        )

    def _decode_image(self, record: Record) -> Image.Image | None:
        """Returns the record's image as its task decodes it; None without one."""
        stored, options = record.get("image"), self.source.batcher.decode_options
        if isinstance(stored, bytes):
            return images.decode(stored, options)
        if isinstance(stored, np.ndarray) and stored.ndim == 3:
            return Image.fromarray(stored)
        return None

    def _image_fields(
        self, image: Image.Image, line: Line, record: Record, example: Example
    ) -> dict[str, Any]:
        """Returns the stored image and all boxes in its pixels."""
        batcher, given = self.source.batcher, []
        transform = box_transform_of(record, example, batcher.decode_options)
        if transform is not None:
            start = batcher.vocabulary.bin_ids.start
            for match in _BINS.finditer(line["instruction"]):
                ids = [start + int(number) for number in match.groups()]
                box = batcher.vocabulary.decode_box(ids, self.spec.max_image_size)
                given.append(_box(transform.to_stored(box)))
        return {
            "image": data_uri(image),
            "width": image.width,
            "height": image.height,
            "given_boxes": given,
            "target_boxes": _boxes(self.spec.kind, line["references"]),
            "predicted_boxes": _boxes(self.spec.kind, line["prediction"]),
        }

    def _code_images(
        self, image: Image.Image | None, line: Line, example: Example
    ) -> dict[str, Any]:
        """Returns the images that true and predicted codes stand for, and the true pixels."""
        shown: dict[str, Any] = {
            "reconstruction": self._decode_codes(line["references"] or ()),
            "predicted_image": self._decode_codes(line["prediction"]),
        }
        blank = example.get("blank_box")
        if blank is not None and image is not None:
            y0, x0, y1, x1 = map(int, blank)
            whole = images.resize_and_center_crop(
                image,
                example["image"].shape[0],
                self.source.batcher.decode_options.max_resized_pixels,
            )
            shown["truth_image"] = data_uri(whole.crop((x0, y0, x1, y1)))
        return shown

    def _decode_codes(self, codes: Sequence[int]) -> str | None:
        """Returns the image of a square grid of codes; tokens that are not codes count as 0."""
        assert self.image_tokenizer is not None
        side = round(len(codes) ** 0.5)
        if not side or side * side != len(codes):
            return None
        grid = np.clip(codes, 0, self.image_tokenizer.num_codes - 1).astype(np.int32)
        decoded: UInt8[np.ndarray, "1 h w 3"] = self.image_tokenizer.decode(
            grid.reshape(1, side, side)
        )
        return data_uri(Image.fromarray(decoded[0]))


def write(
    folder: epath.Path, task: EvalTask, image_tokenizer: ImageTokenizer | None, count: int
) -> list[GalleryExample]:
    """Writes the gallery of a task's predictions beside them; a failure is only logged.

    Args:
      folder: with the predictions.
      task: tasks in seqio's own order have no gallery, as their records cannot be looked up.
      image_tokenizer: see `GalleryMaker`.
      count: number of examples; 0 for no gallery.

    Returns:
      The examples.
    """
    if not count or not isinstance(task.source, RecordEvalSource):
        return []
    try:
        lines = read_lines(folder / PREDICTIONS)
        made = GalleryMaker(task.spec, task.source, image_tokenizer).make(lines, count)
        files.write_json(folder / GALLERY_FILE, to_json(made))
    except Exception as error:  # noqa: BLE001  hours of decoding must not end in a drawing's error
        logging.warning("No gallery of %s was written.", task.name, exc_info=error)
        return []
    return made


def data_uri(image: Image.Image, longest_side: int = _LONGEST_SIDE) -> str:
    """Returns an image as a data URI, scaled down to a longest side in pixels."""
    image = image.copy()
    image.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def to_json(examples: Sequence[GalleryExample]) -> list[dict[str, Any]]:
    """Returns the contents of `gallery.json`."""
    return [dataclasses.asdict(example) for example in examples]


def _worst_and_best(rated: Sequence[Rated], count: int) -> list[Rated]:
    """Returns half of `count` from either end of the metric, the worst first.

    Of equal ones those with the highest score of the model: a confident mistake is the more
    interesting one, and so is what the model knows for sure.
    """
    worst_first = sorted(rated, key=lambda pair: (pair[0].value, -_score(pair[1])))
    if len(rated) <= count:
        return worst_first
    worst, others = worst_first[: count // 2], worst_first[count // 2 :]
    others.sort(key=lambda pair: (pair[0].value, _score(pair[1])))
    return [*worst, *others[len(worst) - count :]]


def _score(line: Line) -> float:
    return -math.inf if line["score"] is None else line["score"]


def _boxes(kind: str, value: Any) -> list[LabelledBox]:
    """Returns the boxes of a reference or prediction of a kind; those without area are left out."""
    if value is None:
        found = []
    elif kind == "box":
        found = [_box(value)]
    elif kind == "objects":
        found = [
            _box(box, label) for box, label in zip(value["boxes"], value["labels"], strict=True)
        ]
    else:
        found = []
    return [
        box for box in found if box.corners[2] > box.corners[0] and box.corners[3] > box.corners[1]
    ]


def _box(corners: Any, label: str = "") -> LabelledBox:
    x0, y0, x1, y1 = (round(float(corner), 1) for corner in corners)
    return LabelledBox((x0, y0, x1, y1), str(label))


def _target_text(kind: str, references: Any) -> str:
    """Returns the references in words."""
    if references is None:
        return "no reference"
    return _as_text(kind, references) if kind != "text" else _reference_text(references)


def _reference_text(references: Any) -> str:
    """Returns the references of a text: one, several, or a mapping that has them under any key."""
    if isinstance(references, Mapping):
        for key in ("captions", "answers"):
            if key in references:
                return _reference_text(references[key])
        return ", ".join(map(str, references))
    if isinstance(references, Sequence) and not isinstance(references, str):
        return " | ".join(dict.fromkeys(map(str, references)))
    return str(references)


def _as_text(kind: str, value: Any) -> str:
    """Returns a target or prediction in words."""
    if kind == "box":
        return ", ".join(f"{float(corner):.0f}" for corner in value)
    if kind == "objects":
        return ", ".join(map(str, value["labels"])) or "no objects"
    if kind == "codes":
        return f"{len(value)} image codes"
    return str(value)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
