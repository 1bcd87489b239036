"""Makes the lines of predictions, and counts what they say about records."""

import collections
import math
from collections.abc import Iterable, Sequence
from typing import Any

from absl import logging
from jaxtyping import Int
from numpy import ndarray

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.evaluation.eval_example import EvalExample
from ofa_jax.evaluation.eval_sources import EvalBatch
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.prediction_files import Line, PredictionFiles
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.bad_input import INVALID_RECORD, as_invalid_record

_MAX_WARNINGS = 20


class PartWriter:
    """Collects the predictions of a part, and writes them as lines."""

    def __init__(
        self,
        spec: EvalSpec,
        vocabulary: OFAVocabulary,
        files: PredictionFiles,
        is_own_row: Sequence[bool],
    ):
        """Creates a writer for this host's rows that are marked as its own."""
        self._spec = spec
        self._vocabulary = vocabulary
        self._files = files
        self._is_own_row = is_own_row
        self._lines: list[Line] = []
        self._warnings = 0

    def add(self, batch: EvalBatch, decoded: DecodedBatch) -> None:
        """Adds the predictions of a batch."""
        for row, example in enumerate(batch.examples):
            if example is None or not self._is_own_row[row]:
                continue
            line = make_line(self._spec, self._vocabulary, example, *decoded.best(row))
            if "error" in line:
                self._warn(example.index, line["error"])
            self._lines.append(line)

    def finish_part(self, part: int) -> None:
        """Writes the collected lines as a part."""
        self._files.write(part, self._lines)
        self._lines.clear()

    def _warn(self, index: int, error: str) -> None:
        """Logs why an example is skipped, up to a number of warnings."""
        if self._warnings < _MAX_WARNINGS:
            logging.warning("Skipped %s, record %d: %s", self._spec.task, index, error)
            self._warnings += 1


def make_line(
    spec: EvalSpec,
    vocabulary: OFAVocabulary,
    example: EvalExample,
    ids: Int[ndarray, " n"],
    score: float,
) -> Line:
    """Returns the line of an example: its prediction, or why it has none.

    Args:
      spec: says what the prediction is parsed as.
      vocabulary: of the prediction.
      example: what is known of it.
      ids: the predicted tokens.
      score: of the prediction.
    """
    start: dict[str, Any] = {"index": example.index, "id": example.id}
    notes = {"notes": [list(own) for own in example.notes]} if example.notes else {}
    if example.error is not None:
        return start | {"error": example.error, "reason": example.reason} | notes
    try:
        prediction = postprocess.parse(
            spec.kind, ids, vocabulary, spec.max_image_size, example.box_transform
        )
    except Exception as error:  # noqa: BLE001  a model may generate anything
        invalid = as_invalid_record(error, "its prediction cannot be parsed")
        return start | {"error": str(invalid), "reason": invalid.reason.name} | notes
    return {
        **start,
        "instruction": example.instruction,
        "references": example.references,
        "prediction": postprocess.to_json(spec.kind, prediction),
        "score": score if math.isfinite(score) else None,
        **notes,
    }


def count_findings(lines: Iterable[Line]) -> dict[str, int]:
    """Counts by reason why records were skipped, and what was dropped or replaced in others."""
    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
        if "error" in line:
            counts[line.get("reason") or INVALID_RECORD.name] += 1
        counts.update(reason for reason, _ in line.get("notes", ()))
    return dict(sorted(counts.items()))
