"""Records with a single target each, so that predictions can be evaluated.

A record of Scenes has six questions, and an objective samples one of them. An evaluation must know
which, so the question is sampled here, from a generator that depends only on the record's index.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.record_questions import as_confidence
from ofa_jax.preprocessing.record_regions import as_box
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_caption, clean_question, has_no_words, is_blank

_PARALLEL = {
    "questions": ("questions", "answers", "answer_confidences", "answer_types"),
    "regions": ("phrases", "phrase_boxes"),
}
_CLEANED: Mapping[str, Callable[[str], str]] = {
    "questions": clean_question,
    "phrases": clean_caption,
    "captions": clean_caption,
}


@dataclasses.dataclass(frozen=True)
class SingleTarget:
    """A RecordSource over another one, with one question, region or text to match per record.

    Attributes:
      records: records of one kind.
      kind: a key of `RECORD_FIELDS`.
    """

    records: RecordSource
    kind: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return select_single_target(self.records[index], self.kind, np.random.default_rng(index))

    def location(self, index: int) -> str:
        """Returns where a record is stored, for messages."""
        location = getattr(self.records, "location", None)
        return f"record {index}" if location is None else location(index)


def select_single_target(record: Record, kind: str, rng: np.random.Generator) -> Record:
    """Reduces a record to a single target.

    Of `questions` and `regions` one is kept. Of `pairs` one caption or question is kept, and a
    label is added: whether matching uses a true or a false text. Records of other kinds, and
    records whose parallel fields differ in length, are returned unchanged.
    """
    if kind in _PARALLEL:
        return _select(record, _PARALLEL[kind], rng)
    if kind != "pairs":
        return record
    about_question = bool(record.get("questions"))
    if about_question and record.get("captions"):
        about_question = rng.random() < 0.5
    fields = _PARALLEL["questions"] if about_question else ("captions",)
    others = ("captions",) if about_question else _PARALLEL["questions"]
    single = _select({k: v for k, v in record.items() if k not in others}, fields, rng)
    return {**single, "label": "yes" if rng.random() < 0.5 else "no"}


def _is_usable(field: str, value: Any) -> bool:
    """Returns whether an entry of a field is not one that the preprocessors drop."""
    if field == "answer_types":
        return True
    if field == "answer_confidences":
        return not math.isnan(as_confidence(value))
    if field == "phrase_boxes":
        return as_box(value) is not None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return False
    return not has_no_words(_CLEANED[field](text)) if field in _CLEANED else not is_blank(text)


def _select(record: Record, fields: tuple[str, ...], rng: np.random.Generator) -> Record:
    """Samples one usable entry and keeps only it in each of the parallel fields."""
    present: dict[str, Any] = {
        field: record[field] for field in fields if len(record.get(field, ()))
    }
    if len({len(values) for values in present.values()}) != 1:
        return record
    count = len(present[next(iter(present))])
    usable = [
        index
        for index in range(count)
        if all(_is_usable(field, values[index]) for field, values in present.items())
    ] or range(count)  # the preprocessor says what is wrong with a record that has none
    index = usable[int(rng.integers(len(usable)))]
    return {**record, **{field: values[index : index + 1] for field, values in present.items()}}
