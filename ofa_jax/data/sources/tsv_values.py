"""Decoders of single columns of the official TSV files; `tsv_columns` makes records of them.

A column that cannot be used raises InvalidLineError with one of the reasons below.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from ofa_jax.data.sources.tsv_file import InvalidLineError
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.excerpts import truncate

MAX_SHOWN = 40
"""Characters of a column that messages show."""

BAD_TEXT = declare(
    "bad text", Treatment.SKIPPED, "A text column of the TSV line is not UTF-8.", __name__
)
EMPTY_TEXT = declare(
    "empty text",
    Treatment.SKIPPED,
    "A column of the TSV line that the task needs is empty.",
    __name__,
)
BAD_BOX = declare(
    "bad box",
    Treatment.SKIPPED,
    "A box of the TSV line is not `x0,y0,x1,y1`, with category id and category for objects.",
    __name__,
)
BAD_CODES = declare(
    "bad image codes",
    Treatment.SKIPPED,
    "The image codes of the TSV line are not integers.",
    __name__,
)
BAD_ANSWERS = declare(
    "bad answers",
    Treatment.SKIPPED,
    "The answers of the TSV line are not `confidence|!+answer`.",
    __name__,
)
UNKNOWN_LABEL = declare(
    "unknown label",
    Treatment.SKIPPED,
    "The label of the TSV line is not one of the task's.",
    __name__,
)
BAD_ANSWER = declare(
    "malformed answer",
    Treatment.DROPPED,
    "One of the answers of a TSV line is not `confidence|!+answer`.",
    __name__,
)

TsvRow = Mapping[str, bytes]
"""The selected columns of a line by name."""


def decode_text(row: TsvRow, column: str) -> str:
    """Decodes a column. Raises InvalidLineError if it is not UTF-8."""
    try:
        return row[column].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidLineError(BAD_TEXT, f"its {column} is not UTF-8") from error


def decode_nonempty(row: TsvRow, column: str) -> str:
    """Decodes a column that must not be empty. Raises InvalidLineError."""
    value = decode_text(row, column)
    if not value.strip():
        raise InvalidLineError(EMPTY_TEXT, f"its {column} is empty")
    return value


def split_list(row: TsvRow, column: str) -> list[str]:
    """Splits a column at `&&`."""
    return [part for part in decode_text(row, column).strip().split("&&") if part.strip()]


def parse_box(row: TsvRow, column: str) -> Float32[np.ndarray, "1 4"]:
    """Parses `x0,y0,x1,y1` in pixels."""
    text = decode_text(row, column)
    return as_boxes(parse_corners(text.strip().split(","), text))


def parse_corners(numbers: Sequence[str], entry: str) -> list[float]:
    """Parses the four numbers of a box; `entry` is quoted in the error."""
    try:
        corners = [float(number) for number in numbers]
    except ValueError:
        corners = []
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        raise InvalidLineError(
            BAD_BOX, f"{truncate(entry, MAX_SHOWN)} are not four numbers x0,y0,x1,y1"
        )
    return corners


def parse_codes(row: TsvRow, column: str) -> Int32[np.ndarray, " n"]:
    """Parses image codes separated by blanks."""
    text = decode_text(row, column)
    try:
        values = np.array([int(code) for code in text.split()], np.int32)
    except (ValueError, OverflowError):
        values = np.array([-1])
    if not len(values) or (values < 0).any():
        raise InvalidLineError(BAD_CODES, f"{truncate(text, MAX_SHOWN)!r} are not image codes")
    return values


def parse_answers(row: TsvRow, column: str) -> dict[str, float]:
    """Parses answers with their confidences: `confidence|!+answer`, joined by `&&`.

    Of two equal answers the later one counts. Malformed ones are dropped.

    Raises:
      InvalidLineError: all of them are malformed.
    """
    found, malformed = {}, []
    for entry in split_list(row, column):
        confidence, separator, answer = entry.partition("|!+")
        try:
            # Rounded to float32, as in stored records and in loss weights.
            value = float(np.float32(confidence))
        except ValueError:
            value = math.nan
        if not separator or not answer or not 0 <= value < math.inf:
            malformed.append(f"{truncate(entry, MAX_SHOWN)!r} is not confidence|!+answer")
        else:
            found[answer] = value
    if malformed and not found:
        raise InvalidLineError(BAD_ANSWERS, malformed[0])
    for problem in malformed:
        note(BAD_ANSWER, problem)
    return found


def most_confident(found: Mapping[str, float], column: str) -> tuple[str, float]:
    """Returns the answer of the highest confidence, and that. Raises InvalidLineError."""
    if not found:
        raise InvalidLineError(BAD_ANSWERS, f"its {column} have no answer")
    answer = max(found, key=found.__getitem__)
    return answer, found[answer]


def is_unpublished(row: TsvRow, column: str) -> bool:
    """Returns whether a column of targets is empty, as in a test set without references.

    Such a record can be evaluated, but not trained on: the preprocessors skip it there.
    """
    return not decode_text(row, column).strip()


def parse_label(row: TsvRow, targets: Mapping[str, str]) -> dict[str, str]:
    """Returns the target of the row's label; none in a test set (TFDS writes -1 there)."""
    label = decode_text(row, "label").strip()
    if label in ("", "-1"):
        return {}
    if label not in targets:
        raise InvalidLineError(
            UNKNOWN_LABEL,
            f"its label is {truncate(label, MAX_SHOWN)!r} instead of one of {', '.join(targets)}",
        )
    return {"label": targets[label]}
