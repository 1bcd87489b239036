"""Parsers of the official OFA TSV files: from the columns of a line to a record.

One table, TSV_FORMATS, lists for each kind of file the columns that are read by default (the
official `selected_cols`), their names, and the function that parses them.

    tsv_format = TSV_FORMATS["vision_language"]
    row = dict(zip(tsv_format.columns, selected_columns))  # bytes
    record = tsv_format.parse(row)                         # or InvalidLineError
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from ofa_jax.data.sources.tsv_file import InvalidLineError, decode_base64
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.excerpts import truncate

_MAX_SHOWN = 40
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
UNKNOWN_TYPE = declare(
    "unknown type",
    Treatment.SKIPPED,
    "The type column of the TSV line is not one of the known types.",
    __name__,
)
BAD_OBJECT = declare(
    "malformed object",
    Treatment.DROPPED,
    "One of the objects of a TSV line is not `x0,y0,x1,y1,category-id,category`.",
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

CAPTION, QUESTION, REGION = "caption", "qa", "visual_grounding"
PAIR_TYPES = (CAPTION, QUESTION, REGION)
"""The possible values of the last column of a vision-language file."""


@dataclasses.dataclass(frozen=True)
class TsvFormat:
    """The columns of a kind of file and their parser.

    Attributes:
      columns: the names of the selected columns in order.
      selected_cols: their indices in a line, counted from 0, as in the official configuration.
      parse: converts a row to a record; raises InvalidLineError.
      key: the column that has a line's type, if there is one.
    """

    columns: tuple[str, ...]
    selected_cols: tuple[int, ...]
    parse: Callable[[TsvRow], Record]
    key: str | None = None


# ------------------------------------------------------------------------------------- columns


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
    return as_boxes(_parse_corners(text.strip().split(","), text))


def _parse_corners(numbers: Sequence[str], entry: str) -> list[float]:
    """Parses the four numbers of a box; `entry` is quoted in the error."""
    try:
        corners = [float(number) for number in numbers]
    except ValueError:
        corners = []
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        raise InvalidLineError(
            BAD_BOX, f"{truncate(entry, _MAX_SHOWN)} are not four numbers x0,y0,x1,y1"
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
        raise InvalidLineError(BAD_CODES, f"{truncate(text, _MAX_SHOWN)!r} are not image codes")
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
            malformed.append(f"{truncate(entry, _MAX_SHOWN)!r} is not confidence|!+answer")
        else:
            found[answer] = value
    if malformed and not found:
        raise InvalidLineError(BAD_ANSWERS, malformed[0])
    for problem in malformed:
        note(BAD_ANSWER, problem)
    return found


def _most_confident(found: Mapping[str, float], column: str) -> tuple[str, float]:
    if not found:
        raise InvalidLineError(BAD_ANSWERS, f"its {column} have no answer")
    answer = max(found, key=found.__getitem__)
    return answer, found[answer]


def _is_unpublished(row: TsvRow, column: str) -> bool:
    """Returns whether a column of targets is empty, as in a test set without references.

    Such a record can be evaluated, but not trained on: the preprocessors skip it there.
    """
    return not decode_text(row, column).strip()


def _parse_label(row: TsvRow, targets: Mapping[str, str]) -> dict[str, str]:
    """Returns the target of the row's label; none in a test set (TFDS writes -1 there)."""
    label = decode_text(row, "label").strip()
    if label in ("", "-1"):
        return {}
    if label not in targets:
        raise InvalidLineError(
            UNKNOWN_LABEL,
            f"its label is {truncate(label, _MAX_SHOWN)!r} instead of one of {', '.join(targets)}",
        )
    return {"label": targets[label]}


# -------------------------------------------------------------------------------------- pretraining


def parse_pair(row: TsvRow) -> Record:
    """Parses an image with a caption, a question or a region, according to the type."""
    kind = decode_text(row, "type").strip()
    if kind not in PAIR_TYPES:
        raise InvalidLineError(
            UNKNOWN_TYPE,
            f"its type is {truncate(kind, _MAX_SHOWN)!r} instead of {', '.join(PAIR_TYPES)}",
        )
    record: dict[str, Any] = {
        "id": decode_text(row, "id"),
        "image": decode_base64(row["image"]),
        "data_set": decode_text(row, "data_set"),
        "object_labels": split_list(row, "objects"),
    }
    if kind == CAPTION:
        return record | {"captions": [decode_nonempty(row, "caption")]}
    if kind == QUESTION:
        answer, confidence = _most_confident(parse_answers(row, "refs"), "refs")
        return record | {
            "questions": [decode_nonempty(row, "question")],
            "answers": [answer],
            "answer_confidences": [confidence],
        }
    return record | {
        "phrases": [decode_nonempty(row, "caption")],
        "phrase_boxes": parse_box(row, "refs"),
    }


def parse_text(row: TsvRow) -> Record:
    """Parses a text."""
    return {"id": decode_text(row, "id"), "text": decode_nonempty(row, "text")}


def parse_coded_image(row: TsvRow) -> Record:
    """Parses an image and the codes of its centre."""
    image = decode_base64(row["image"])
    return {"id": decode_text(row, "id"), "image": image, "codes": parse_codes(row, "codes")}


def parse_objects(row: TsvRow) -> Record:
    """Parses an image and its objects: `x0,y0,x1,y1,category-id,category`, joined by `&&`.

    Malformed objects are dropped. Raises InvalidLineError if none is left.
    """
    labels, boxes, malformed = [], [], []
    for entry in split_list(row, "objects"):
        try:
            label, corners = _parse_object(entry.strip())
        except InvalidLineError as error:
            malformed.append(error)
        else:
            labels.append(label)
            boxes.append(corners)
    if not labels:
        raise malformed[0] if malformed else InvalidLineError(EMPTY_TEXT, "it has no objects")
    for problem in malformed:
        note(BAD_OBJECT, str(problem))
    return {
        "id": decode_text(row, "id"),
        "image": decode_base64(row["image"]),
        "object_labels": labels,
        "object_boxes": as_boxes(boxes),
    }


def _parse_object(entry: str) -> tuple[str, list[float]]:
    """Parses the name and the box of an object. Raises InvalidLineError."""
    parts = entry.split(",", 5)
    if len(parts) != 6 or not parts[5]:
        raise InvalidLineError(
            BAD_BOX, f"{truncate(entry, _MAX_SHOWN)!r} is not x0,y0,x1,y1,category-id,category"
        )
    return parts[5], _parse_corners(parts[:4], entry)


# --------------------------------------------------------------------------------------- downstream


def parse_captioned_image(row: TsvRow) -> Record:
    """Parses an image and its captions: one in training, all in evaluation, none in a test set."""
    captions = split_list(row, "captions")
    record = {"id": decode_text(row, "id"), "image": decode_base64(row["image"])}
    return record | {"captions": captions} if captions else record


def parse_vqa(row: TsvRow) -> Record:
    """Parses a question about an image, its most confident answer, all answers, and objects.

    Without answers, as in a test set, the record has only the question.
    """
    record: dict[str, Any] = {
        "id": decode_text(row, "id"),
        "image": decode_base64(row["image"]),
        "questions": [decode_nonempty(row, "question")],
        "object_labels": split_list(row, "objects"),
    }
    found = parse_answers(row, "answers")
    if not found:
        return record
    answer, confidence = _most_confident(found, "answers")
    return record | {
        "answers": [answer],
        "answer_confidences": [confidence],
        "reference_answers": list(found),
        "reference_confidences": list(found.values()),
    }


def parse_region(row: TsvRow) -> Record:
    """Parses an image, a phrase and its box."""
    record = {
        "id": decode_text(row, "id"),
        "image": decode_base64(row["image"]),
        "phrases": [decode_nonempty(row, "phrase")],
    }
    return (
        record if _is_unpublished(row, "box") else record | {"phrase_boxes": parse_box(row, "box")}
    )


def parse_entailment(row: TsvRow) -> Record:
    """Parses an image, a premise, a hypothesis and the label."""
    return {
        "id": decode_text(row, "id"),
        "image": decode_base64(row["image"]),
        "hypothesis": decode_nonempty(row, "hypothesis"),
        "premise": decode_text(row, "premise"),
    } | _parse_label(row, _ENTAILMENT_TARGETS)


def parse_classified_image(row: TsvRow) -> Record:
    """Parses an image and the name of its class."""
    record: dict[str, Any] = {"image": decode_base64(row["image"])}
    return (
        record if _is_unpublished(row, "label") else record | {"label": decode_text(row, "label")}
    )


def parse_coded_caption(row: TsvRow) -> Record:
    """Parses a caption and the codes of its whole image."""
    record = {"id": decode_text(row, "id"), "captions": [decode_nonempty(row, "caption")]}
    return (
        record if _is_unpublished(row, "codes") else record | {"codes": parse_codes(row, "codes")}
    )


def parse_article(row: TsvRow) -> Record:
    """Parses a text and its summary."""
    record = {"text": decode_nonempty(row, "text")}
    summary = decode_text(row, "summary")
    return record | {"summary": summary} if summary.strip() else record


_ENTAILMENT_TARGETS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
_NO_YES = {"0": "no", "1": "yes"}
_NOT_ENTAILED = {"not_entailment": "no", "entailment": "yes"}


@dataclasses.dataclass(frozen=True)
class _SentenceParser:
    """Parses one or two sentences, named as in TFDS, and the label.

    Attributes:
      columns: the sentences.
      targets: label -> target.
    """

    columns: tuple[str, ...]
    targets: Mapping[str, str]

    def __call__(self, row: TsvRow) -> Record:
        sentences = {column: decode_nonempty(row, column) for column in self.columns}
        return sentences | _parse_label(row, self.targets)


def _sentence_format(
    columns: tuple[str, ...], selected_cols: tuple[int, ...], targets: Mapping[str, str]
) -> TsvFormat:
    return TsvFormat((*columns, "label"), selected_cols, _SentenceParser(columns, targets))


TSV_FORMATS: Mapping[str, TsvFormat] = {
    # Pretraining.
    "vision_language": TsvFormat(
        ("id", "image", "caption", "question", "refs", "objects", "data_set", "type"),
        (0, 1, 2, 3, 4, 5, 6, 7),
        parse_pair,
        key="type",
    ),
    "text": TsvFormat(("id", "text"), (0, 1), parse_text),
    "images": TsvFormat(("id", "image", "codes"), (0, 1, 2), parse_coded_image),
    "detection": TsvFormat(("id", "image", "objects"), (0, 1, 2), parse_objects),
    # Downstream.
    "caption": TsvFormat(("id", "image", "captions"), (0, 4, 2), parse_captioned_image),
    "vqa": TsvFormat(("id", "image", "question", "answers", "objects"), (0, 5, 2, 3, 4), parse_vqa),
    "refcoco": TsvFormat(("id", "image", "phrase", "box"), (0, 4, 2, 3), parse_region),
    "snli_ve": TsvFormat(
        ("id", "image", "hypothesis", "premise", "label"), (0, 2, 3, 4, 5), parse_entailment
    ),
    "imagenet": TsvFormat(("image", "label"), (0, 2), parse_classified_image),
    "text_to_image": TsvFormat(("id", "caption", "codes"), (0, 2, 1), parse_coded_caption),
    "gigaword": TsvFormat(("text", "summary"), (0, 1), parse_article),
    # GLUE, with the columns of its own files.
    "cola": _sentence_format(("sentence",), (1, 2), _NO_YES),
    "sst2": _sentence_format(("sentence",), (0, 1), {"0": "negative", "1": "positive"}),
    "mrpc": _sentence_format(("sentence1", "sentence2"), (0, 1, 2), _NO_YES),
    "qqp": _sentence_format(("question1", "question2"), (3, 4, 5), _NO_YES),
    "mnli": _sentence_format(
        ("premise", "hypothesis"), (0, 1, 2), {"0": "maybe", "1": "yes", "2": "no"}
    ),
    "qnli": _sentence_format(("question", "sentence"), (1, 2, 3), _NO_YES | _NOT_ENTAILED),
    "rte": _sentence_format(("sentence1", "sentence2"), (1, 2, 3), _NOT_ENTAILED),
}
"""Kind of file -> its format."""
