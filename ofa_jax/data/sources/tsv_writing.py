"""Lines of the official TSV files that read back as the records that they are made of.

The inverse of `tsv_columns`. What a column cannot hold is replaced by a space, and reported by
`bad_input.note`: a tab, the end of a line or a NUL in any text; `&&` and `|!+` in the names of
objects and in answers, which these separate. White space around those is not kept.
"""

import base64
import re
from collections.abc import Iterator, Sequence

import numpy as np

from ofa_jax.data.sources.tsv_columns import CAPTION, QUESTION, REGION
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.record_fields import drop_unusable, optional_texts, text_problem
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.text_files import replace_surrogates

NOT_IN_TSV = declare(
    "text that TSV cannot hold",
    Treatment.REPLACED,
    "A text that is converted to TSV has a tab, the end of a line or a NUL, or the name of an "
    "object or an answer has `&&` or `|!+`: a space stands for it. ArrayRecord holds all texts.",
    __name__,
)
_BREAKS = re.compile(r"[\t\r\n\0]+")
_SEPARATORS = re.compile(r"[\t\r\n\0]+|&&|\|!\+")
# A byte order mark in front of the first column would be taken for that of the file.
_BREAKS_OF_ID = re.compile(r"^\ufeff+|[\t\r\n\0]+")


def tsv_lines(kind: str, record: Record) -> Iterator[list[str]]:
    """Yields the columns of the lines of a record, whose entries can be used.

    Args:
      kind: of the record, a key of `RECORD_FIELDS`.
      record: has an id and an image, but for texts, and what the kind needs.

    Raises:
      InvalidRecordError: nothing is left of its texts once they are cleaned.
    """
    head = [_without(_BREAKS_OF_ID, record.get("id", "")), ""]
    if "image" in record:
        head[1] = base64.urlsafe_b64encode(record["image"]).decode()
    if kind == "text":
        yield [head[0], clean_column(record["text"])]
    elif kind == "images":
        yield [*head, " ".join(str(int(code)) for code in record["codes"])]
    elif kind == "objects":
        labels, kept = _entries(record, "object_labels")
        boxes = as_boxes(record["object_boxes"])[kept]
        objects = zip(boxes, labels, strict=True)
        yield [*head, _join([f"{_box(box)},0,{label}" for box, label in objects])]
    else:
        yield from _pair_lines(kind, record, head)


def _pair_lines(kind: str, record: Record, head: Sequence[str]) -> Iterator[list[str]]:
    """Yields the lines of a record with captions, questions or regions."""
    labels = [clean_entry(label) for label in optional_texts(record, "object_labels")]
    tail = [_join([label for label in labels if text_problem(label) is None])]
    tail.append(clean_column(record.get("data_set", "")))
    if kind == "captions":
        for caption in record["captions"]:
            yield [*head, clean_column(caption), "", "", *tail, CAPTION]
    elif kind == "questions":
        answers, kept = _entries(record, "answers")
        for answer, number in zip(answers, kept, strict=True):
            confidence = np.float32(record["answer_confidences"][number])
            refs = f"{_number(confidence)}|!+{answer}"
            yield [*head, "", clean_column(record["questions"][number]), refs, *tail, QUESTION]
    else:
        for phrase, box in zip(record["phrases"], as_boxes(record["phrase_boxes"]), strict=True):
            yield [*head, clean_column(phrase), "", _box(box), *tail, REGION]


def _entries(record: Record, field: str) -> tuple[list[str], list[int]]:
    """Returns the texts of a list that are not empty once they are cleaned, and their numbers."""
    texts = [clean_entry(text) for text in record[field]]
    kept = drop_unusable(record, field, [text_problem(text) for text in texts])
    return [texts[number] for number in kept], kept


def _join(entries: Sequence[str]) -> str:
    """Joins entries by `&&`; one that ends in `&` gets a space before it, which keeps the `&`."""
    *others, last = entries or ("",)
    return "&&".join([*(f"{one} " if one.endswith("&") else one for one in others), last])


def clean_column(text: str) -> str:
    """Returns a text that is a column of its own, without what ends one, which is reported."""
    return _without(_BREAKS, text)


def clean_entry(text: str) -> str:
    """Returns a text that is a part of a column, without separators, which are reported."""
    return _without(_SEPARATORS, text)


def _without(pattern: re.Pattern[str], text: str) -> str:
    cleaned = replace_surrogates(pattern.sub(" ", text))
    if cleaned != text:
        note(NOT_IN_TSV, f"{text[:50]!r} has a character or a separator that TSV cannot hold")
    return cleaned


def _box(box: np.ndarray) -> str:
    return ",".join(map(_number, box))


def _number(value: np.float32) -> str:
    """Returns the digits that give the same float32 again."""
    return f"{float(value):.9g}"
