"""Checked access to the questions, answers and confidences of a record."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.record_fields import (
    BAD_ENTRY,
    WRONG_TYPE,
    Problem,
    drop_unusable,
    get_texts,
    has_entries,
    kind_of,
    name_of,
    record_error,
    text_problem,
)
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_question
from ofa_jax.utils.bad_input import note


class QuestionAnswer(NamedTuple):
    """A question, its answer, and the answer's confidence and type (None if unknown)."""

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
    clean = functools.partial(clean_question, max_words=max_words)
    found = questions_as_written(record, clean, may_be_none)
    return [one._replace(question=clean(one.question)) for one in found]


def questions_as_written(
    record: Record, clean: Callable[[str], str] | None = None, may_be_none: bool = False
) -> list[QuestionAnswer]:
    """Returns the questions that can be used, as they are before they are cleaned.

    Args:
      record: has questions and answers.
      clean: the function that will clean the questions, if any.
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

    def problem(index: int) -> Problem:
        if math.isnan(confidences[index]):
            return BAD_ENTRY, "has a confidence that is not a number of at least 0"
        if (found := text_problem(questions[index], clean)) is not None:
            return found
        if (found := text_problem(answers[index])) is not None:
            return found[0], f"has an answer that {found[1]}"
        return None

    problems = [problem(index) for index in range(len(questions))]
    usable = drop_unusable(record, "questions", problems, may_be_none)
    return [
        QuestionAnswer(str(questions[index]), str(answers[index]), confidences[index], types[index])
        for index in usable
    ]


def get_confidences(record: Record, field: str, count: int | None = None) -> list[float]:
    """Returns confidences: 1 if the record has none, NaN for those that cannot be used.

    Args:
      record: may have the field.
      field: a list of numbers.
      count: how many there must be; None for any number.

    Raises:
      InvalidRecordError: they are not a list, or not `count`.
    """
    if not has_entries(record, field):
        return [1.0] * (1 if count is None else count)
    values = record[field]
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray):
        raise record_error(record, f"its {field} are a {kind_of(values)}, not a list", WRONG_TYPE)
    if count is not None and len(values) != count:
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
        note(BAD_ENTRY, f"{name_of(record)}: {len(found)} answer_types for {count} questions")
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
