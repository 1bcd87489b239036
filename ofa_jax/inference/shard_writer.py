"""Writes what a job decodes: the line of each request, and its generated image beside it."""

import collections
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.evaluation.eval_sources import EvalBatch, EvalExample
from ofa_jax.inference.entries import clean_text
from ofa_jax.inference.predictions import Prediction, decode_images, parse_prediction, to_png
from ofa_jax.inference.shards import Shards
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils.bad_input import UNEXPECTED_ERROR, Treatment, as_invalid_record, declare

NO_OUTPUT = declare(
    "no output",
    Treatment.SKIPPED,
    "The decoder found no output that the constraints allow, or the model's scores are not finite "
    "numbers.",
    __name__,
)


@dataclasses.dataclass
class JobCounts:
    """What this run of a job has done; see `JobSummary`."""

    decoded: int = 0
    truncated: int = 0
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class ShardWriter:
    """Collects the lines of a shard and writes them when they are complete.

    Attributes:
      shard: the shard of the last batch.
    """

    def __init__(self, shards: Shards, processor: Processor, done: JobCounts):
        """Writes nothing yet.

        Args:
          shards: the output files.
          processor: of the model.
          done: counts what is added.
        """
        self.shard = 0
        self._done = done
        self._shards = shards
        self._processor = processor
        self._lines: dict[int, dict[str, Any]] = {}
        self._images: dict[str, bytes] = {}

    def add(self, batch: EvalBatch, decoded: DecodedBatch | None) -> None:
        """Adds the predictions of a batch, all of one shard."""
        generated = self._decode_images(batch, decoded)
        for row, example in enumerate(batch.examples):
            if example is None:
                continue
            self.shard = example.index // self._shards.size
            self._lines[example.index] = self._line(example, decoded, row, generated.get(row))
            self._done.decoded += 1
            self._done.truncated += getattr(example, "is_truncated", False)
        if self._lines and len(self._lines) == len(self._shards.inputs(self.shard)):
            lines = [self._lines[index] for index in sorted(self._lines)]
            self._shards.write(self.shard, lines, self._images)
            self._lines, self._images = {}, {}

    def _decode_images(
        self, batch: EvalBatch, decoded: DecodedBatch | None
    ) -> dict[int, Image.Image]:
        """Returns the image of each row that has one, decoded in batches."""
        if decoded is None:
            return {}
        vocabulary, rows = self._processor.vocabulary, []
        codes: list[np.ndarray | None] = []
        for row, example in enumerate(batch.examples):
            ids = decoded.best(row)[0]
            if example is None or not np.isin(ids, np.asarray(vocabulary.code_ids)).any():
                continue
            rows.append(row)
            codes.append(postprocess.parse("codes", ids, vocabulary))
        try:
            images = decode_images(codes, self._processor)
        except Exception:  # noqa: BLE001  each is decoded alone then, and says what is wrong
            return {}
        return {row: own for row, own in zip(rows, images, strict=True) if own is not None}

    def _line(
        self,
        example: EvalExample,
        decoded: DecodedBatch | None,
        row: int,
        generated: Image.Image | None,
    ) -> dict[str, Any]:
        """Returns the line of a request; a generated image is collected beside it."""
        line: dict[str, Any] = {
            "id": clean_text(example.id),
            "instruction": clean_text(example.instruction),
        }
        error, reason = example.error, example.reason
        if error is None and decoded is not None:
            try:
                fields = self._fields(example, decoded, row, generated)
                return line | fields | self._warnings(example)
            except _NoOutputError as problem:
                error, reason = str(problem), NO_OUTPUT.name
            except Exception as problem:  # noqa: BLE001  one output never ends a job
                error = str(as_invalid_record(problem, "Its output cannot be converted"))
                reason = UNEXPECTED_ERROR.name
        self._done.reasons[reason or UNEXPECTED_ERROR.name] += 1
        return line | {"error": error} | self._warnings(example)

    def _warnings(self, example: EvalExample) -> dict[str, Any]:
        """Returns the field with what was dropped or replaced in the request."""
        self._done.reasons.update(name for name, _ in example.notes)
        return {"warnings": [detail for _, detail in example.notes]} if example.notes else {}

    def _fields(
        self,
        example: EvalExample,
        decoded: DecodedBatch,
        row: int,
        generated: Image.Image | None,
    ) -> dict[str, Any]:
        """Returns the fields of a prediction's line. Raises _NoOutputError."""
        ids, score = decoded.best(row)
        if np.isnan(decoded.scores[row]).any():
            raise _NoOutputError("The scores of the model are not finite numbers")
        if not np.isfinite(score):
            raise _NoOutputError("The decoder found no output that the constraints allow")
        prediction = parse_prediction(
            ids, score, self._processor, example.box_transform, with_image=generated is None
        )
        if generated is not None:
            prediction = dataclasses.replace(prediction, image=generated)
        fields = _to_json(prediction)
        if prediction.image is not None:
            offset = example.index - self._shards.inputs(self.shard).start
            fields["image"] = self._shards.image_name(self.shard, offset)
            self._images[fields["image"]] = to_png(prediction.image)
        return fields


class _NoOutputError(ValueError):
    """The decoder has generated nothing."""


def _to_json(prediction: Prediction) -> dict[str, Any]:
    """Returns the fields of a prediction's line."""
    line: dict[str, Any] = {"answer": prediction.text, "score": prediction.score}
    boxes = prediction.boxes.tolist()
    if prediction.labels:
        line |= {"boxes": boxes, "labels": list(prediction.labels)}
    elif boxes:
        line["box"] = boxes[0]
    if prediction.codes is not None:
        line["codes"] = prediction.codes.tolist()
    return line
