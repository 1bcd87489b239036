"""From the columns of the original's TSV files to records (section 7 of the spec).

One table, LAYOUTS, says for each kind of file which columns are read by default (the original's
`selected_cols`), what they are called, and which function makes a record of them.

    layout = LAYOUTS["vision_language"]
    row = dict(zip(layout.columns, selected_columns))     # bytes
    record = layout.parse(row)                            # fields of `records`, or InvalidLineError
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.data.sources.tsv_file import InvalidLineError, decode_base64
from ofa_jax.preprocessing.boxes import as_boxes

Row = Mapping[str, bytes]
Record = dict[str, Any]

CAPTION, QUESTION, REGION = "caption", "qa", "visual_grounding"
PAIR_TYPES = (CAPTION, QUESTION, REGION)
"""What the last column of a vision-language file may say."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kind of file is read.

    Attributes:
      columns: the names of the selected columns, in their order.
      selected_cols: their places in a line, counted from 0, as the original selects them.
      parse: column name -> bytes to a record; raises InvalidLineError.
      key: the column that says of which type a line is, if there is one.
    """

    columns: tuple[str, ...]
    selected_cols: tuple[int, ...]
    parse: Callable[[Row], Record]
    key: str | None = None


# ----------------------------------------------------------------------------------- parts of a row


def text(row: Row, column: str) -> str:
    """A column as text. Raises InvalidLineError if it is not UTF-8."""
    try:
        return row[column].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidLineError("bad text", f"its {column} is not UTF-8") from error


def some_text(row: Row, column: str) -> str:
    """The same, where there must be some."""
    value = text(row, column)
    if not value.strip():
        raise InvalidLineError("empty text", f"its {column} is empty")
    return value


def parts(row: Row, column: str) -> list[str]:
    """Texts that are joined by `&&`."""
    return [part for part in text(row, column).strip().split("&&") if part.strip()]


def box(row: Row, column: str) -> np.ndarray:
    """`x0,y0,x1,y1` in pixels as float32 [1, 4]."""
    return as_boxes(_corners(text(row, column).strip().split(","), text(row, column)))


def _corners(numbers: Sequence[str], entry: str) -> list[float]:
    try:
        corners = [float(number) for number in numbers]
    except ValueError:
        corners = []
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        raise InvalidLineError("bad box", f"{_shortened(entry)} are not four numbers x0,y0,x1,y1")
    return corners


def codes(row: Row, column: str) -> np.ndarray:
    """Image codes separated by blanks, int32 [n]."""
    try:
        values = np.array([int(code) for code in text(row, column).split()], np.int32)
    except (ValueError, OverflowError):
        values = np.array([-1])
    if not len(values) or (values < 0).any():
        raise InvalidLineError(
            "bad image codes", f"{_shortened(text(row, column))!r} are no image codes"
        )
    return values


def answers(row: Row, column: str) -> dict[str, float]:
    """`confidence|!+answer`, joined by `&&`; the later of two equal answers counts."""
    found = {}
    for entry in parts(row, column):
        confidence, separator, answer = entry.partition("|!+")
        try:
            # As stored records and the loss weights have it.
            value = float(np.float32(confidence))
        except ValueError:
            value = math.nan
        if not separator or not answer or not 0 <= value < math.inf:
            raise InvalidLineError(
                "bad answers", f"{_shortened(entry)!r} is no confidence|!+answer"
            )
        found[answer] = value
    return found


def _best(found: Mapping[str, float], column: str) -> tuple[str, float]:
    if not found:
        raise InvalidLineError("bad answers", f"its {column} have no answer")
    answer = max(found, key=found.__getitem__)
    return answer, found[answer]


def _label(row: Row, answers: Mapping[str, str]) -> str:
    label = text(row, "label").strip()
    if label not in answers:
        raise InvalidLineError(
            "unknown label",
            f"its label is {_shortened(label)!r} instead of one of {', '.join(answers)}",
        )
    return answers[label]


def _shortened(value: str) -> str:
    return value if len(value) <= 40 else value[:37] + "..."


# -------------------------------------------------------------------------------------- pretraining


def pair(row: Row) -> Record:
    """A caption, a question or a region of an image: whatever its type says."""
    kind = text(row, "type").strip()
    if kind not in PAIR_TYPES:
        raise InvalidLineError(
            "unknown type",
            f"its type is {_shortened(kind)!r} instead of {', '.join(PAIR_TYPES)}",
        )
    record = {
        "id": text(row, "id"),
        "image": decode_base64(row["image"]),
        "data_set": text(row, "data_set"),
        "object_labels": parts(row, "objects"),
    }
    if kind == CAPTION:
        return record | {"captions": [some_text(row, "caption")]}
    if kind == QUESTION:
        answer, confidence = _best(answers(row, "refs"), "refs")
        return record | {
            "questions": [some_text(row, "question")],
            "answers": [answer],
            "answer_confidences": [confidence],
        }
    return record | {"phrases": [some_text(row, "caption")], "phrase_boxes": box(row, "refs")}


def plain_text(row: Row) -> Record:
    """A text."""
    return {"id": text(row, "id"), "text": some_text(row, "text")}


def coded_image(row: Row) -> Record:
    """An image and the codes of its middle."""
    image = decode_base64(row["image"])
    return {"id": text(row, "id"), "image": image, "codes": codes(row, "codes")}


def objects(row: Row) -> Record:
    """An image and its objects: `x0,y0,x1,y1,category-id,category`, joined by `&&`."""
    entries = [entry.strip().split(",", 5) for entry in parts(row, "objects")]
    if not entries:
        raise InvalidLineError("empty text", "it has no objects")
    for entry in entries:
        if len(entry) != 6 or not entry[5]:
            raise InvalidLineError(
                "bad box",
                f"{_shortened(','.join(entry))!r} is not x0,y0,x1,y1,category-id,category",
            )
    return {
        "id": text(row, "id"),
        "image": decode_base64(row["image"]),
        "object_labels": [entry[5] for entry in entries],
        "object_boxes": as_boxes([_corners(entry[:4], ",".join(entry)) for entry in entries]),
    }


# --------------------------------------------------------------------------------------- downstream


def captioned_image(row: Row) -> Record:
    """An image and its captions: one in training, all of them in evaluation."""
    captions = parts(row, "captions")
    if not captions:
        raise InvalidLineError("empty text", "it has no captions")
    return {"id": text(row, "id"), "image": decode_base64(row["image"]), "captions": captions}


def answered_question(row: Row) -> Record:
    """A question about an image, its best answer and all answers; objects that a detector saw.

    A test set without answers gives the question alone.
    """
    record = {
        "id": text(row, "id"),
        "image": decode_base64(row["image"]),
        "questions": [some_text(row, "question")],
        "object_labels": parts(row, "objects"),
    }
    found = answers(row, "answers")
    if not found:
        return record
    answer, confidence = _best(found, "answers")
    return record | {
        "answers": [answer],
        "answer_confidences": [confidence],
        "reference_answers": list(found),
        "reference_confidences": list(found.values()),
    }


def region(row: Row) -> Record:
    """A phrase and its box."""
    return {
        "id": text(row, "id"),
        "image": decode_base64(row["image"]),
        "phrases": [some_text(row, "phrase")],
        "phrase_boxes": box(row, "box"),
    }


def entailment(row: Row) -> Record:
    """Whether an image with its premise implies a hypothesis; the label is the answer."""
    return {
        "id": text(row, "id"),
        "image": decode_base64(row["image"]),
        "hypothesis": some_text(row, "hypothesis"),
        "premise": text(row, "premise"),
        "label": _label(row, {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}),
    }


def classified_image(row: Row) -> Record:
    """An image and the name of its class."""
    return {"image": decode_base64(row["image"]), "label": some_text(row, "label")}


def coded_caption(row: Row) -> Record:
    """A caption and the codes of its whole image."""
    return {
        "id": text(row, "id"),
        "captions": [some_text(row, "caption")],
        "codes": codes(row, "codes"),
    }


def article(row: Row) -> Record:
    """A text and its summary."""
    return {"text": some_text(row, "text"), "summary": some_text(row, "summary")}


_NO_YES = {"0": "no", "1": "yes"}
_NOT_ENTAILED = {"not_entailment": "no", "entailment": "yes"}


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """One or two sentences, by the names that TFDS has for them, and the label as the answer."""

    columns: tuple[str, ...]
    answers: Mapping[str, str]

    def __call__(self, row: Row) -> Record:
        sentences = {column: some_text(row, column) for column in self.columns}
        return sentences | {"label": _label(row, self.answers)}


def _glue(
    columns: tuple[str, ...], selected_cols: tuple[int, ...], answers: Mapping[str, str]
) -> Layout:
    return Layout((*columns, "label"), selected_cols, _Labelled(columns, answers))


LAYOUTS: Mapping[str, Layout] = {
    # Pretraining.
    "vision_language": Layout(
        ("id", "image", "caption", "question", "refs", "objects", "data_set", "type"),
        (0, 1, 2, 3, 4, 5, 6, 7),
        pair,
        key="type",
    ),
    "text": Layout(("id", "text"), (0, 1), plain_text),
    "images": Layout(("id", "image", "codes"), (0, 1, 2), coded_image),
    "detection": Layout(("id", "image", "objects"), (0, 1, 2), objects),
    # Downstream.
    "caption": Layout(("id", "image", "captions"), (0, 4, 2), captioned_image),
    "vqa": Layout(
        ("id", "image", "question", "answers", "objects"), (0, 5, 2, 3, 4), answered_question
    ),
    "refcoco": Layout(("id", "image", "phrase", "box"), (0, 4, 2, 3), region),
    "snli_ve": Layout(
        ("id", "image", "hypothesis", "premise", "label"), (0, 2, 3, 4, 5), entailment
    ),
    "imagenet": Layout(("image", "label"), (0, 2), classified_image),
    "text_to_image": Layout(("id", "caption", "codes"), (0, 2, 1), coded_caption),
    "gigaword": Layout(("text", "summary"), (0, 1), article),
    # GLUE, in its own files' columns.
    "cola": _glue(("sentence",), (1, 2), _NO_YES),
    "sst2": _glue(("sentence",), (0, 1), {"0": "negative", "1": "positive"}),
    "mrpc": _glue(("sentence1", "sentence2"), (0, 1, 2), _NO_YES),
    "qqp": _glue(("question1", "question2"), (3, 4, 5), _NO_YES),
    "mnli": _glue(("premise", "hypothesis"), (0, 1, 2), {"0": "maybe", "1": "yes", "2": "no"}),
    "qnli": _glue(("question", "sentence"), (1, 2, 3), _NO_YES | _NOT_ENTAILED),
    "rte": _glue(("sentence1", "sentence2"), (1, 2, 3), _NOT_ENTAILED),
}
"""Kind of file -> how it is read."""
