"""Checked access to a record's fields: texts and the image.

`record_questions` and `record_regions` do the same for questions, boxes and codes. A field of a
wrong type or without any usable entry raises InvalidRecordError. Of several entries, the malformed
and the empty ones are dropped, and reported by `bad_input.note`; texts are empty if nothing is left
after cleaning. The draws of a record without bad entries do not depend on this.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.preprocessing.text import has_no_words, is_blank
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
Problem = tuple[Reason, str] | None
"""Why an entry is dropped, with a detail; None if it can be used."""


def record_error(
    record: Record, problem: str, reason: Reason = INVALID_RECORD
) -> InvalidRecordError:
    """Returns the error to raise: a sentence that names the record and its problem."""
    return InvalidRecordError(f"{name_of(record)}: {problem}", reason)


def name_of(record: Record) -> str:
    """Returns what a record is called in messages; its id may have any type and length."""
    return f"record {replace_surrogates(str(record.get('id', '?')))[:100]}"


def get_required(record: Record, field: str) -> Any:
    """Returns a field that must not be empty. Raises InvalidRecordError."""
    value = record.get(field)
    try:
        if value is None or not len(value):
            raise record_error(record, f"it has no {field}", MISSING)
    except TypeError:  # a number, for example
        raise record_error(record, f"its {field} is a {kind_of(value)}", WRONG_TYPE) from None
    return value


def kind_of(value: Any) -> str:
    """Returns the name of a value's type, for messages."""
    return type(value).__name__


# ------------------------------------------------------------------------------------------ texts


def get_text(record: Record, field: str) -> str:
    """Returns a text that must not be empty. Raises InvalidRecordError."""
    text = _as_text(record, field, get_required(record, field))
    if text is None:
        kind = kind_of(record[field])
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
            record, f"its {field} are a {kind_of(values)} instead of a list of texts", WRONG_TYPE
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
            note(NOT_UTF8, f"{name_of(record)}: its {field} has bytes that are not UTF-8")
            value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    if len(value) > _MAX_CHARACTERS:
        note(TOO_LONG, f"{name_of(record)}: its {field} has {len(value):,} characters")
        value = value[:_MAX_CHARACTERS]
    return value


def text_problem(text: str | None, clean: Callable[[str], str] | None = None) -> Problem:
    """Returns why a text of a list cannot be used."""
    if text is None:
        return BAD_ENTRY, "is not a text"
    if is_blank(text) if clean is None else has_no_words(clean(text)):
        return EMPTY_ENTRY, f"is empty after cleaning: {text[:50]!r}"
    return None


def drop_unusable(
    record: Record, field: str, problems: Sequence[Problem], may_be_none: bool = False
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
        note(reason, f"{name_of(record)}: number {index + 1} of its {field} {detail}")
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
    problems = [text_problem(text, clean) for text in texts]
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


# -------------------------------------------------------------------------------------- the image


def decode_image(
    record: Record, options: DecodeOptions = AS_SEEN, at_least: int | None = None
) -> Image.Image:
    """Decodes the record's image; see `images.decode`. Raises InvalidRecordError if it has none."""
    encoded = get_required(record, "image")
    try:
        return images.decode(encoded, options, at_least)
    except InvalidRecordError as error:
        raise record_error(record, str(error), error.reason) from error
