"""Parsers of the official OFA TSV files: from the columns of a line to a record.

One table, TSV_FORMATS, lists for each kind of file the columns that are read by default (the
official `selected_cols`), their names, and the function that parses them.

    tsv_format = TSV_FORMATS["vision_language"]
    row = dict(zip(tsv_format.columns, selected_columns))  # bytes
    record = tsv_format.parse(row)                         # or InvalidLineError
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ofa_jax.data.sources.tsv_file import InvalidLineError, decode_base64
from ofa_jax.data.sources.tsv_values import (
    BAD_BOX,
    EMPTY_TEXT,
    MAX_SHOWN,
    TsvRow,
    decode_nonempty,
    decode_text,
    is_unpublished,
    most_confident,
    parse_answers,
    parse_box,
    parse_codes,
    parse_corners,
    parse_label,
    split_list,
)
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.excerpts import truncate

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


# -------------------------------------------------------------------------------------- pretraining


def parse_pair(row: TsvRow) -> Record:
    """Parses an image with a caption, a question or a region, according to the type."""
    kind = decode_text(row, "type").strip()
    if kind not in PAIR_TYPES:
        raise InvalidLineError(
            UNKNOWN_TYPE,
            f"its type is {truncate(kind, MAX_SHOWN)!r} instead of {', '.join(PAIR_TYPES)}",
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
        answer, confidence = most_confident(parse_answers(row, "refs"), "refs")
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
            BAD_BOX, f"{truncate(entry, MAX_SHOWN)!r} is not x0,y0,x1,y1,category-id,category"
        )
    return parts[5], parse_corners(parts[:4], entry)


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
    answer, confidence = most_confident(found, "answers")
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
        record if is_unpublished(row, "box") else record | {"phrase_boxes": parse_box(row, "box")}
    )


def parse_entailment(row: TsvRow) -> Record:
    """Parses an image, a premise, a hypothesis and the label."""
    return {
        "id": decode_text(row, "id"),
        "image": decode_base64(row["image"]),
        "hypothesis": decode_nonempty(row, "hypothesis"),
        "premise": decode_text(row, "premise"),
    } | parse_label(row, _ENTAILMENT_TARGETS)


def parse_classified_image(row: TsvRow) -> Record:
    """Parses an image and the name of its class."""
    record: dict[str, Any] = {"image": decode_base64(row["image"])}
    return record if is_unpublished(row, "label") else record | {"label": decode_text(row, "label")}


def parse_coded_caption(row: TsvRow) -> Record:
    """Parses a caption and the codes of its whole image."""
    record = {"id": decode_text(row, "id"), "captions": [decode_nonempty(row, "caption")]}
    return record if is_unpublished(row, "codes") else record | {"codes": parse_codes(row, "codes")}


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
        return sentences | parse_label(row, self.targets)


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
