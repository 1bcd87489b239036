"""Checked access to a record's fields: texts, questions, boxes, codes and the image.

A field of a wrong type or without any usable entry raises InvalidRecordError. Of several entries,
the malformed and the empty ones are dropped, and reported by `bad_input.note`; texts are empty if
nothing is left after cleaning. The draws of a record without bad entries do not depend on this.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image

from ofa_jax.preprocessing import boxes as box_ops
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.preprocessing.text import clean_question, has_no_words, is_blank
from ofa_jax.utils.bad_input import INVALID_RECORD, Reason, Treatment, declare, note
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.text_files import replace_surrogates

MISSING = declare(
    "missing field",
    Treatment.SKIPPED,
    "The record lacks a field that its task needs, or the field has no entries.",
    __name__,
)
WRONG_TYPE = declare(
    "field of a wrong type",
    Treatment.SKIPPED,
    "A field is not what `ofa_jax/preprocessing/records.py` says, such as one text in place of a "
    "list of texts, or fields that belong together have different numbers of entries.",
    __name__,
)
NOTHING_LEFT = declare(
    "no usable entry",
    Treatment.SKIPPED,
    "Every caption, question, phrase or object of the record is malformed or empty.",
    __name__,
)
EMPTY = declare(
    "text is empty after cleaning",
    Treatment.SKIPPED,
    "Nothing is left of a text that the task needs once it has been cleaned: it had white space, "
    "control characters or leading punctuation only.",
    __name__,
)
WRONG_CODES = declare(
    "wrong image codes",
    Treatment.SKIPPED,
    "Image codes are not whole numbers, are outside of the vocabulary, or are not as many as the "
    "task needs.",
    __name__,
)
BAD_ENTRY = declare(
    "malformed entry",
    Treatment.DROPPED,
    "One of several captions, questions, phrases or objects is not a text, or its answer or its "
    "confidence cannot be used.",
    __name__,
)
EMPTY_ENTRY = declare(
    "empty entry",
    Treatment.DROPPED,
    "One of several captions, questions, phrases or objects has an empty text after cleaning.",
    __name__,
)
BAD_BOX = declare(
    "box without area",
    Treatment.DROPPED,
    "A box has no area within the image, or is not four finite numbers. Its phrase or its object "
    "is dropped with it. A box that reaches beyond the image is clipped.",
    __name__,
)
NOT_UTF8 = declare(
    "text is not UTF-8",
    Treatment.REPLACED,
    "Bytes in place of a text are decoded as UTF-8; what is not UTF-8 becomes U+FFFD.",
    __name__,
)
TOO_LONG = declare(
    "text is too long",
    Treatment.REPLACED,
    "A text is cut off after a million characters, before it is cleaned.",
    __name__,
)

_MAX_CHARACTERS = 1_000_000
_Problem = tuple[Reason, str] | None
"""Why an entry is dropped, with a detail; None if it can be used."""


def record_error(
    record: Record, problem: str, reason: Reason = INVALID_RECORD
) -> InvalidRecordError:
    """Returns the error to raise: a sentence that names the record and its problem."""
    return InvalidRecordError(f"{_name(record)}: {problem}", reason)


def _name(record: Record) -> str:
    """Returns what a record is called in messages; its id may have any type and length."""
    return f"record {replace_surrogates(str(record.get('id', '?')))[:100]}"


def get_required(record: Record, field: str) -> Any:
    """Returns a field that must not be empty. Raises InvalidRecordError."""
    value = record.get(field)
    try:
        if value is None or not len(value):
            raise record_error(record, f"it has no {field}", MISSING)
    except TypeError:  # a number, for example
        raise record_error(record, f"its {field} is a {_kind(value)}", WRONG_TYPE) from None
    return value


def _kind(value: Any) -> str:
    """Returns the name of a value's type, for messages."""
    return type(value).__name__


# ------------------------------------------------------------------------------------------ texts


def get_text(record: Record, field: str) -> str:
    """Returns a text that must not be empty. Raises InvalidRecordError."""
    text = _as_text(record, field, get_required(record, field))
    if text is None:
        kind = _kind(record[field])
        raise record_error(record, f"its {field} is a {kind} instead of a text", WRONG_TYPE)
    if is_blank(text):
        raise record_error(record, f"its {field} is empty", EMPTY)
    return text


def get_cleaned(record: Record, field: str, clean: Callable[[str], str]) -> str:
    """Returns a cleaned text that must not be empty. Raises InvalidRecordError."""
    cleaned = clean(get_text(record, field))
    if has_no_words(cleaned):
        raise record_error(record, f"its {field} is empty after cleaning", EMPTY)
    return cleaned


def get_texts(record: Record, field: str) -> list[str | None]:
    """Returns the entries of a list of texts, which may be empty; None for those that are not text.

    Raises:
      InvalidRecordError: the field is not a list, or has no entries.
    """
    values = get_required(record, field)
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray):
        raise record_error(
            record, f"its {field} are a {_kind(values)} instead of a list of texts", WRONG_TYPE
        )
    if isinstance(values, np.ndarray):
        values = values.tolist()
    return [_as_text(record, field, value) for value in values]


def has_entries(record: Record, field: str) -> bool:
    """Returns whether a field is there and not empty, whatever its type."""
    value = record.get(field)
    return value is not None and not (hasattr(value, "__len__") and not len(value))


def optional_texts(
    record: Record, field: str, clean: Callable[[str], str] | None = None
) -> list[str]:
    """Returns the texts of a field that may be missing, without malformed and empty ones."""
    if not has_entries(record, field):
        return []
    return usable_texts(record, field, clean, may_be_none=True)


def _as_text(record: Record, field: str, value: Any) -> str | None:
    """Returns a text of bounded length; decodes bytes. Returns None for any other type."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            note(NOT_UTF8, f"{_name(record)}: its {field} has bytes that are not UTF-8")
            value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    if len(value) > _MAX_CHARACTERS:
        note(TOO_LONG, f"{_name(record)}: its {field} has {len(value):,} characters")
        value = value[:_MAX_CHARACTERS]
    return value


def _text_problem(text: str | None, clean: Callable[[str], str] | None = None) -> _Problem:
    """Returns why a text of a list cannot be used."""
    if text is None:
        return BAD_ENTRY, "is not a text"
    if is_blank(text) if clean is None else has_no_words(clean(text)):
        return EMPTY_ENTRY, f"is empty after cleaning: {text[:50]!r}"
    return None


def drop_unusable(
    record: Record, field: str, problems: Sequence[_Problem], may_be_none: bool = False
) -> list[int]:
    """Reports the entries that are dropped, and returns the indices of the others.

    Args:
      record: for messages.
      field: the name of the field that has the entries.
      problems: why each entry is dropped.
      may_be_none: whether all entries may be dropped.

    Raises:
      InvalidRecordError: no entry is left.
    """
    usable = [index for index, problem in enumerate(problems) if problem is None]
    if len(usable) == len(problems):
        return usable
    bad = [(index, problem) for index, problem in enumerate(problems) if problem is not None]
    if not usable and not may_be_none:
        all_empty = all(reason is EMPTY_ENTRY for _, (reason, _) in bad)
        index, (_, detail) = bad[0]
        raise record_error(
            record,
            f"none of its {field} can be used; number {index + 1} {detail}",
            EMPTY if all_empty else NOTHING_LEFT,
        )
    for index, (reason, detail) in bad:
        note(reason, f"{_name(record)}: number {index + 1} of its {field} {detail}")
    return usable


def usable_texts(
    record: Record,
    field: str,
    clean: Callable[[str], str] | None = None,
    may_be_none: bool = False,
) -> list[str]:
    """Returns the texts of a field that are not empty after cleaning, as they were before it.

    Args:
      record: has the field.
      field: a list of texts.
      clean: the function that will clean them, if any.
      may_be_none: whether all of them may be dropped.

    Raises:
      InvalidRecordError: there are none.
    """
    texts = get_texts(record, field)
    problems = [_text_problem(text, clean) for text in texts]
    return [str(texts[index]) for index in drop_unusable(record, field, problems, may_be_none)]


def sample_value(
    record: Record,
    field: str,
    rng: np.random.Generator,
    clean: Callable[[str], str] | None = None,
) -> str:
    """Samples one of a field's texts uniformly, of those that are not empty after cleaning.

    Raises:
      InvalidRecordError: there are none.
    """
    texts = usable_texts(record, field, clean)
    return texts[int(rng.integers(len(texts)))]


# -------------------------------------------------------------------------------------- questions


class QuestionAnswer(NamedTuple):
    """A cleaned question, its answer, and the answer's confidence and type (None if unknown)."""

    question: str
    answer: str
    confidence: float
    answer_type: str | None


def usable_questions(
    record: Record, max_words: int, may_be_none: bool = False
) -> list[QuestionAnswer]:
    """Returns the questions that can be used, cleaned, with their answers.

    Args:
      record: has questions and answers.
      max_words: the maximum length of a question.
      may_be_none: whether all questions may be dropped.

    Raises:
      InvalidRecordError: there is no usable question, or not one answer for each.
    """
    questions, answers = get_texts(record, "questions"), get_texts(record, "answers")
    if len(questions) != len(answers):
        raise record_error(
            record, f"{len(answers)} answers to {len(questions)} questions", WRONG_TYPE
        )
    confidences = get_confidences(record, "answer_confidences", len(questions))
    types = _answer_types(record, len(questions))

    clean = functools.partial(clean_question, max_words=max_words)

    def problem(index: int) -> _Problem:
        if math.isnan(confidences[index]):
            return BAD_ENTRY, "has a confidence that is not a number of at least 0"
        if (found := _text_problem(questions[index], clean)) is not None:
            return found
        if (found := _text_problem(answers[index])) is not None:
            return found[0], f"has an answer that {found[1]}"
        return None

    problems = [problem(index) for index in range(len(questions))]
    usable = drop_unusable(record, "questions", problems, may_be_none)
    return [
        QuestionAnswer(
            clean(str(questions[index])), str(answers[index]), confidences[index], types[index]
        )
        for index in usable
    ]


def get_confidences(record: Record, field: str, count: int) -> list[float]:
    """Returns confidences: 1 if the record has none, NaN for those that cannot be used.

    Raises:
      InvalidRecordError: they are not `count`.
    """
    if not has_entries(record, field):
        return [1.0] * count
    values = record[field]
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray):
        raise record_error(record, f"its {field} are a {_kind(values)}, not a list", WRONG_TYPE)
    if len(values) != count:
        raise record_error(record, f"{len(values)} {field} for {count} entries", WRONG_TYPE)
    return [as_confidence(value) for value in values]


def as_confidence(value: Any) -> float:
    """Returns a number of at least 0; NaN for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if 0 <= number < math.inf else math.nan


def _answer_types(record: Record, count: int) -> list[str | None]:
    """Returns the types of the answers; None for those that are not known."""
    if not has_entries(record, "answer_types"):
        return [None] * count
    found = get_texts(record, "answer_types")
    if len(found) != count:
        note(BAD_ENTRY, f"{_name(record)}: {len(found)} answer_types for {count} questions")
        return [None] * count
    return found


def sample_question(
    record: Record, rng: np.random.Generator, config: ObjectiveConfig
) -> QuestionAnswer:
    """Samples one of the usable questions; see `ObjectiveConfig.question_weights`.

    Raises:
      InvalidRecordError: there is no usable question, or not one answer for each.
    """
    return choose_question(usable_questions(record, config.max_source_words), rng, config)


def choose_question(
    questions: Sequence[QuestionAnswer], rng: np.random.Generator, config: ObjectiveConfig
) -> QuestionAnswer:
    """Samples by the weights of the answer types in training, and uniformly otherwise."""
    if (
        config.training
        and config.question_weights
        and any(q.answer_type is not None for q in questions)
    ):
        weights = np.array(
            [config.question_weights.get(q.answer_type or "", 1.0) for q in questions]
        )
        if weights.any():
            return questions[int(rng.choice(len(questions), p=weights / weights.sum()))]
    return questions[int(rng.integers(len(questions)))]


# -------------------------------------------------------------------------------- boxes and codes


def get_boxes(record: Record, field: str, count: int) -> Float32[np.ndarray, "count 4"]:
    """Returns boxes; those that are not four numbers are NaN.

    Raises:
      InvalidRecordError: they are not `count`, or not boxes at all.
    """
    values = get_required(record, field)
    if not _is_list(values):
        raise record_error(record, f"its {field} are a {_kind(values)}, not boxes", WRONG_TYPE)
    if any(map(_is_list, values)):
        boxes = np.stack([_as_box(value) for value in values])
    else:
        numbers = _as_numbers(values)
        if numbers.ndim != 1 or len(numbers) % 4:
            raise record_error(
                record, f"its {field} are {len(values)} values, not four for each box", WRONG_TYPE
            )
        boxes = box_ops.as_boxes(numbers)
    if len(boxes) != count:
        raise record_error(record, f"{count} names for {len(boxes)} boxes", WRONG_TYPE)
    return boxes


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _as_box(value: Any) -> Float32[np.ndarray, "4"]:
    """Returns four numbers; NaN if the value is something else."""
    box = _as_numbers(value)
    return box if box.shape == (4,) else np.full(4, np.nan, np.float32)


def _as_numbers(value: Any) -> Float32[np.ndarray, "..."]:
    """Returns an array of numbers; one NaN if the value is something else."""
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        return np.full(1, np.nan, np.float32)


def box_problem(box: Float32[np.ndarray, "4"], image_size: tuple[int, int]) -> _Problem:
    """Returns why a box in pixels cannot be used in an image of (width, height)."""
    if not np.isfinite(box).all():
        return BAD_BOX, "has a box that is not four finite numbers"
    if not box_ops.nonempty(box_ops.crop(box[None], 0, 0, *image_size))[0]:
        width, height = image_size
        return (
            BAD_BOX,
            f"has a box {box.tolist()} that has no area within its image of {width} x {height} "
            "pixels",
        )
    return None


def usable_regions(
    record: Record,
    image_size: tuple[int, int],
    names: str,
    boxes: str,
    clean: Callable[[str], str] | None = None,
    only_first: bool = False,
) -> tuple[list[str], Float32[np.ndarray, "n 4"]]:
    """Returns the names and boxes of a record that can be used: with a text, and with an area.

    Args:
      record: has both fields.
      image_size: (width, height) of the image that the boxes lie in.
      names: the field with the names.
      boxes: the field with their boxes, which may reach beyond the image.
      clean: the function that will clean the names.
      only_first: whether the other entries do not matter.

    Raises:
      InvalidRecordError: there are none, or not one box for each name.
    """
    texts = get_texts(record, names)
    found = get_boxes(record, boxes, len(texts))
    if only_first:
        texts, found = texts[:1], found[:1]
    problems = [
        _text_problem(text, clean) or box_problem(box, image_size)
        for text, box in zip(texts, found, strict=True)
    ]
    usable = drop_unusable(record, names, problems)
    return [str(texts[index]) for index in usable], found[usable]


def get_codes(
    record: Record, count: int, num_codes: int, field: str = "codes"
) -> Int32[np.ndarray, " count"]:
    """Returns image codes.

    Raises:
      InvalidRecordError: they are not `count` whole numbers in [0, num_codes).
    """
    try:
        codes = np.asarray(record[field])
    except (TypeError, ValueError, OverflowError):
        codes = np.zeros(0)
    if codes.dtype.kind not in "iu" or codes.ndim != 1:
        raise record_error(record, "its image codes are not a list of whole numbers", WRONG_CODES)
    if len(codes) != count:
        raise record_error(record, f"{len(codes)} image codes instead of {count}", WRONG_CODES)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_codes:
        raise record_error(
            record,
            f"its image codes go from {low} to {high}; the vocabulary has {num_codes:,}",
            WRONG_CODES,
        )
    return codes.astype(np.int32)


# -------------------------------------------------------------------------------------- the image


def decode_image(record: Record, options: DecodeOptions = AS_SEEN) -> Image.Image:
    """Decodes the record's image. Raises InvalidRecordError if there is none."""
    encoded = get_required(record, "image")
    try:
        return images.decode(encoded, options)
    except InvalidRecordError as error:
        raise record_error(record, str(error), error.reason) from error
