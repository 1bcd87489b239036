"""Checked access to a record's fields: the image, one of several questions, a box."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image

from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.preprocessing.text import clean_question
from ofa_jax.utils.bad_input import INVALID_RECORD, Reason


def record_error(
    record: Record, problem: str, reason: Reason = INVALID_RECORD
) -> InvalidRecordError:
    """Returns the error to raise: a sentence that names the record and its problem."""
    return InvalidRecordError(f"record {record.get('id', '?')}: {problem}", reason)


def get_required(record: Record, field: str) -> Any:
    """Returns a field that must not be empty. Raises InvalidRecordError."""
    value = record.get(field)
    if value is None or not len(value):
        raise record_error(record, f"it has no {field}")
    return value


def sample_value(record: Record, field: str, rng: np.random.Generator) -> str:
    """Samples one of a field's values uniformly. Raises InvalidRecordError if there are none."""
    values = get_required(record, field)
    return values[int(rng.integers(len(values)))]


class QuestionAnswer(NamedTuple):
    """A cleaned question, its answer, and the answer's confidence and type (None if unknown)."""

    question: str
    answer: str
    confidence: float
    answer_type: str | None


def sample_question(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> QuestionAnswer:
    """Samples one of the questions; see `ObjectiveConfig.question_weights`.

    Raises:
      InvalidRecordError: there is no question, or not one answer for each.
    """
    questions, answers = get_required(record, "questions"), get_required(record, "answers")
    if len(questions) != len(answers):
        raise record_error(record, f"{len(answers)} answers to {len(questions)} questions")
    confidences = record.get("answer_confidences")
    types = record.get("answer_types")
    index = _sample_question_index(len(questions), types, rng, config)
    return QuestionAnswer(
        clean_question(questions[index], config.max_source_words),
        answers[index],
        1.0 if confidences is None or not len(confidences) else float(confidences[index]),
        types[index] if types else None,
    )


def _sample_question_index(
    count: int, types: Sequence[str] | None, rng: np.random.Generator, config: ObjectiveConfig
) -> int:
    """Samples by the weights of the answer types in training, and uniformly otherwise."""
    if types and config.training and config.question_weights:
        weights = np.array([config.question_weights.get(kind, 1.0) for kind in types])
        if weights.any():
            return int(rng.choice(count, p=weights / weights.sum()))
    return int(rng.integers(count))


def decode_image(record: Record) -> Image.Image:
    """Decodes the record's image. Raises InvalidRecordError if there is none."""
    encoded = get_required(record, "image")
    try:
        return images.decode(encoded)
    except InvalidRecordError as error:
        raise record_error(record, str(error), error.reason) from error


def check_box(record: Record, box: Float32[np.ndarray, "4"], image: Image.Image) -> None:
    """Raises InvalidRecordError if a box in pixels is empty or reaches outside the image."""
    if not np.isfinite(box).all() or not (box[:2] < box[2:]).all():
        raise record_error(record, f"box {box.tolist()} is empty or upside down")
    if (box < 0).any() or (box > np.array(image.size * 2, np.float32) + 1).any():
        raise record_error(
            record, f"box {box.tolist()} lies outside its image of {image.size} pixels"
        )
