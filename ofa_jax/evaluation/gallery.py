"""A gallery: some examples of a task with image, target and prediction, for people to look at.

    predictions.jsonl + records ─▶ the worst and the best examples ─▶ gallery.json ─▶ the report

Boxes are in pixels of the stored image; images are stored in the file, as data URIs.
"""

import base64
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from ofa_jax.data.sampling import read_example
from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.eval_sources import RecordEvalSource, box_transform_of
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.evaluator import EvalTask
from ofa_jax.evaluation.prediction_files import PREDICTIONS, Line, read_lines
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.examples import Example
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.utils import files

GALLERY_FILE = "gallery.json"
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
      quality: the task's main metric on this example alone; None if it cannot be computed.
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
        """Returns the worst and the best examples, the worst first.

        Args:
          lines: predictions; lines with an error are left out.
          count: number of examples.
        """
        rated = [(self.quality(line), line) for line in lines if "error" not in line]
        # Equal ones by the model's score: a confident mistake is the more interesting one.
        rated.sort(key=lambda pair: (_or_low(pair[0]), -_or_low(pair[1]["score"])))
        if len(rated) > count:
            rated = [*rated[: count // 2], *rated[count // 2 - count :]]
        made = []
        for quality, line in rated:
            try:
                made.append(self._example(line, quality))
            except (InvalidRecordError, OSError) as error:
                # The data may have changed since the predictions were made.
                logging.warning("No gallery example for record %s: %s", line["id"], error)
        return made

    def quality(self, line: Line) -> float | None:
        """Returns the main metric on one example; None if it needs more than one."""
        prediction = postprocess.from_json(self.spec.kind, line["prediction"])
        values: dict[str, float] = {}
        for metric in self.spec.metrics:
            try:
                values |= metric([line["references"]], [prediction])
            except Exception as error:  # noqa: BLE001  some metrics need a corpus
                logging.debug("No metric of one example of %s: %s", self.spec.task, error)
        chosen = values.get(self.spec.main_metric or next(iter(values), ""))
        return None if chosen is None or not np.isfinite(chosen) else float(chosen)

    def _example(self, line: Line, quality: float | None) -> GalleryExample:
        """Returns an example with its image and boxes."""
        index = line["index"]
        record, example = read_example(self.source.task, index, self.source.example_rng(index))
        target = (
            line["references"]
            if self.spec.kind in ("box", "objects", "codes")
            else _target_text(line["references"])
        )
        shown: dict[str, Any] = {}
        if (stored := record.get("image")) is not None:
            shown |= self._image_fields(stored, line, record, example)
        if self.spec.kind == "codes" and self.image_tokenizer is not None:
            shown |= self._code_images(line, record, example)
        prediction = postprocess.from_json(self.spec.kind, line["prediction"])
        return GalleryExample(
            index=index,
            id=line["id"],
            instruction=_shorten(line["instruction"]),
            target=_shorten(_as_text(self.spec.kind, target)),
            prediction=_shorten(_as_text(self.spec.kind, prediction)),
            score=line["score"],
            quality=quality,
            **shown,
        )

    def _image_fields(
        self, stored: bytes, line: Line, record: Record, example: Example
    ) -> dict[str, Any]:
        """Returns the stored image and all boxes in its pixels."""
        image = images.decode(stored)
        transform = box_transform_of(record, example)
        vocabulary, start = self.source.batcher.vocabulary, 0
        given = []
        if transform is not None:
            for match in _BINS.finditer(line["instruction"]):
                start = vocabulary.bin_ids.start
                ids = [start + int(number) for number in match.groups()]
                box = vocabulary.decode_box(ids, self.spec.max_image_size)
                given.append(_box(transform.to_stored(box)))
        prediction = postprocess.from_json(self.spec.kind, line["prediction"])
        return {
            "image": data_uri(image),
            "width": image.width,
            "height": image.height,
            "given_boxes": given,
            "target_boxes": _boxes(self.spec.kind, line["references"]),
            "predicted_boxes": _boxes(self.spec.kind, prediction),
        }

    def _code_images(self, line: Line, record: Record, example: Example) -> dict[str, Any]:
        """Returns the images that true and predicted codes stand for, and the true pixels."""
        assert self.image_tokenizer is not None
        shown: dict[str, Any] = {
            "reconstruction": self._decode_codes(line["references"]),
            "predicted_image": self._decode_codes(line["prediction"]),
        }
        blank = example.get("blank_box")
        if blank is not None and record.get("image") is not None:
            y0, x0, y1, x1 = map(int, blank)
            whole = images.resize_and_center_crop(
                images.decode(record["image"]), example["image"].shape[0]
            )
            shown["truth_image"] = data_uri(Image.fromarray(images.to_array(whole)[y0:y1, x0:x1]))
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
) -> None:
    """Writes the gallery of a task's predictions beside them; a failure is only logged.

    Args:
      folder: with the predictions.
      task: tasks in seqio's own order have no gallery, as their records cannot be looked up.
      image_tokenizer: see `GalleryMaker`.
      count: number of examples; 0 for no gallery.
    """
    if not count or not isinstance(task.source, RecordEvalSource):
        return
    try:
        lines = read_lines(folder / PREDICTIONS)
        made = GalleryMaker(task.spec, task.source, image_tokenizer).make(lines, count)
        files.write_json(folder / GALLERY_FILE, to_json(made))
    except Exception as error:  # noqa: BLE001  hours of decoding must not end in a drawing's error
        logging.warning("No gallery of %s was written.", task.name, exc_info=error)


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


def _or_low(value: float | None) -> float:
    return -np.inf if value is None else value


def _boxes(kind: str, value: Any) -> list[LabelledBox]:
    """Returns the boxes of a reference or prediction of a kind; those without area are left out."""
    if kind == "box":
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


def _target_text(references: Any) -> str:
    """Returns the references of a text: one, several, or a mapping that has them under any key."""
    if isinstance(references, str):
        return references
    if isinstance(references, dict):
        for key in ("captions", "answers"):
            if key in references:
                return _target_text(references[key])
        return ", ".join(map(str, references))
    if isinstance(references, Sequence):
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
