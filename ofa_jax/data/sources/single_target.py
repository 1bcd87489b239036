"""Records of which each asks one thing, so that its answer can be judged.

A record of Scenes has six questions, and an objective draws one of them. Who judges the answer must
know which: for evaluation the draw is made here, once and for all, by the record's place.
"""

import dataclasses
from typing import Any

import numpy as np

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.records import Record

_PARALLEL = {
    "questions": ("questions", "answers", "answer_confidences", "answer_types"),
    "regions": ("phrases", "phrase_boxes"),
}


@dataclasses.dataclass(frozen=True)
class SingleTarget:
    """A RecordSource over another one, with one question, region or claim in each record.

    Attributes:
      records: of a kind.
      kind: a key of `records.RECORD_FIELDS`.
    """

    records: RecordSource
    kind: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return with_single_target(self.records[index], self.kind, np.random.default_rng(index))

    def location(self, index: int) -> str:
        """Where a record is stored, for messages."""
        location = getattr(self.records, "location", None)
        return f"record {index}" if location is None else location(index)


def with_single_target(record: Record, kind: str, rng: np.random.Generator) -> Record:
    """A record that leaves its objective no choice of what to ask.

    Of `questions` and `regions` one remains. Of `pairs` a caption or a question remains, and a
    label that says whether matching shall ask for what is true of the image. Records of other
    kinds, and those whose fields do not fit each other, stay as they are.
    """
    if kind in _PARALLEL:
        return _chosen(record, _PARALLEL[kind], rng)
    if kind != "pairs":
        return record
    about_question = bool(record.get("questions"))
    if about_question and record.get("captions"):
        about_question = rng.random() < 0.5
    fields = _PARALLEL["questions"] if about_question else ("captions",)
    others = ("captions",) if about_question else _PARALLEL["questions"]
    single = _chosen({k: v for k, v in record.items() if k not in others}, fields, rng)
    return {**single, "label": "yes" if rng.random() < 0.5 else "no"}


def _chosen(record: Record, fields: tuple[str, ...], rng: np.random.Generator) -> Record:
    """The record with one entry, the same one, in each of the parallel fields that it has."""
    present: dict[str, Any] = {
        field: record[field] for field in fields if len(record.get(field, ()))
    }
    if len({len(values) for values in present.values()}) != 1:
        return record
    index = int(rng.integers(len(present[next(iter(present))])))
    return {**record, **{field: values[index : index + 1] for field, values in present.items()}}
