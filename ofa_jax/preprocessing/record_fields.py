"""What objectives read of a record, checked: the image, one of several questions, a box."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.preprocessing.text import clean_question


def at(record: Record, problem: str) -> str:
    """The sentence that names the record and says what is wrong with it."""
    return f"record {record.get('id', '?')}: {problem}"


def require(record: Record, field: str) -> Any:
    """A field that must not be empty. Raises InvalidRecordError."""
    value = record.get(field)
    if value is None or not len(value):
        raise InvalidRecordError(at(record, f"it has no {field}"))
    return value


def pick(record: Record, field: str, rng: np.random.Generator) -> str:
    """Draws one of a field's values uniformly. Raises InvalidRecordError if there are none."""
    values = require(record, field)
    return values[int(rng.integers(len(values)))]


def question(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> tuple[str, str, float, str | None]:
    """A question, its answer, the answer's confidence and type. Raises InvalidRecordError."""
    questions, answers = require(record, "questions"), require(record, "answers")
    if len(questions) != len(answers):
        raise InvalidRecordError(
            at(record, f"{len(answers)} answers to {len(questions)} questions")
        )
    confidences = record.get("answer_confidences")
    types = record.get("answer_types")
    index = _which_question(len(questions), types, rng, config)
    return (
        clean_question(questions[index], config.max_source_words),
        answers[index],
        1.0 if confidences is None or not len(confidences) else float(confidences[index]),
        types[index] if types else None,
    )


def _which_question(
    count: int, types: Sequence[str] | None, rng: np.random.Generator, config: ObjectiveConfig
) -> int:
    if types and config.training and config.question_weights:
        weights = np.array([config.question_weights.get(kind, 1.0) for kind in types])
        if weights.any():
            return int(rng.choice(count, p=weights / weights.sum()))
    return int(rng.integers(count))


def image(record: Record) -> Image.Image:
    """The decoded image. Raises InvalidRecordError."""
    try:
        return images.decode(require(record, "image"))
    except InvalidRecordError as error:
        raise InvalidRecordError(at(record, str(error))) from error


def check_box(record: Record, box: np.ndarray, decoded: Image.Image) -> None:
    """Raises InvalidRecordError for a box [4] in pixels that is empty or outside the image."""
    if not np.isfinite(box).all() or not (box[:2] < box[2:]).all():
        raise InvalidRecordError(at(record, f"box {box.tolist()} is empty or upside down"))
    if (box < 0).any() or (box > np.array(decoded.size * 2, np.float32) + 1).any():
        raise InvalidRecordError(
            at(record, f"box {box.tolist()} lies outside its image of {decoded.size} pixels")
        )
