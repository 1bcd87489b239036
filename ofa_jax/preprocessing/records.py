"""Where records come from: the two protocols that data sets keep, and sources for common cases.

A record is a dict of plain values. Every field is optional; an objective says what it needs.

    id                str
    image             bytes, any format that Pillow opens
    captions          list[str]                        negative_captions  list[str], false ones
    questions         list[str]   answers list[str]    answer_confidences list[float]
                                                       answer_types       list[str]      parallel
    phrases           list[str]                        phrase_boxes       float32[P, 4]  parallel
    true_phrases      list[str]                        true_phrase_boxes  float32[Q, 4]  parallel
                      (all phrases that are right, where a data set knows them: to judge answers)
    object_labels     list[str]                        object_boxes       float32[K, 4]  parallel
    codes             int32[n], image codes of the image's middle, when computed beforehand (of
                      the whole image where an image is to be generated)
    text              str                              summary            str
    data_set          str, where the record is from (the captions of "cc12m" are treated specially)
    label             str, the answer of a classification (in `pairs`: whether to ask for what is
                      true, "yes" or "no"); its sentences have the names of TFDS (sentence,
                      sentence1, premise, hypothesis, question, question1 ...)
    reference_answers list[str]                        reference_confidences list[float], parallel

Boxes are x0, y0, x1, y1 in pixels of the stored image.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ofa_jax.preprocessing.negatives import NegativePool

Record = Mapping[str, Any]

RECORD_FIELDS: Mapping[str, tuple[str, ...]] = {
    "captions": ("id", "image", "data_set", "captions", "object_labels"),
    "pairs": (
        "id",
        "image",
        "data_set",
        "captions",
        "negative_captions",
        "object_labels",
        "questions",
        "answers",
        "answer_confidences",
        "answer_types",
        "label",
    ),
    "questions": ("id", "image", "questions", "answers", "answer_confidences", "answer_types"),
    "regions": (
        "id",
        "image",
        "phrases",
        "phrase_boxes",
        "true_phrases",
        "true_phrase_boxes",
    ),
    "objects": ("id", "image", "object_labels", "object_boxes"),
    "images": ("id", "image", "codes"),
    "text": ("id", "text"),
}
"""The kinds of record that objectives ask for, and the fields that each may have.

`pairs` are what matching asks about: images with captions, with questions, or with both."""

DOWNSTREAM_FIELDS: Mapping[str, tuple[str, ...]] = {
    "answered_questions": (
        "id",
        "image",
        "questions",
        "answers",
        "answer_confidences",
        "object_labels",
        "reference_answers",
        "reference_confidences",
    ),
    "entailment": ("id", "image", "premise", "hypothesis", "label"),
    "classes": ("id", "image", "label"),
    "coded_captions": ("id", "captions", "codes"),
    "sentences": (
        "id",
        "sentence",
        "sentence1",
        "sentence2",
        "question",
        "question1",
        "question2",
        "premise",
        "hypothesis",
        "label",
    ),
    "articles": ("id", "text", "summary"),
}
"""The kinds of record that only downstream tasks ask for, and their fields."""


class InvalidRecordError(ValueError):
    """A record that cannot be used: it is skipped, counted and logged, and training goes on."""


class RecordSource(Protocol):
    """Random access to records. Picklable, and free of TensorFlow, for data workers carry it.

    A method `place(index) -> str`, where a source has it, says where a record is stored: the loader
    names it when the record is bad.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class DataSet(Protocol):
    """What the pretraining objectives run over."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits, "train" among them."""

    def records(self, kind: str, split: str) -> RecordSource:
        """The records of one of the kinds in RECORD_FIELDS."""

    def negatives(self) -> NegativePool:
        """Where matching draws wrong captions, names and answers from (the train split)."""


@dataclasses.dataclass(frozen=True)
class InMemoryRecords:
    """Records that are already there."""

    records: Sequence[Record]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """A TFDS data set with random access (stored as array_record or parquet).

    Attributes:
      name: of the data set, e.g. "coco_captions/2014".
      split: in TFDS's notation, e.g. "train[:1%]".
      to_record: a TFDS example (numpy) to a record with the fields above.
      data_dir: TFDS's folder; its default when None.
      decoders: as TFDS takes them; pass `tfds.decode.SkipDecoding()` for the image, so that it
        stays encoded.
    """

    name: str
    split: str
    to_record: Callable[[Mapping[str, Any]], Record]
    data_dir: str | None = None
    decoders: Any = None

    def _source(self) -> Any:
        # Opened once per process, and not carried in the pickle.
        if "_opened" not in self.__dict__:
            import tensorflow_datasets as tfds

            opened = tfds.data_source(
                self.name, split=self.split, data_dir=self.data_dir, decoders=self.decoders
            )
            object.__setattr__(self, "_opened", opened)
        return self.__dict__["_opened"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __len__(self) -> int:
        return len(self._source())

    def __getitem__(self, index: int) -> Record:
        return self.to_record(self._source()[index])
