"""From TFDS's examples to records: what `records.TfdsRecords` is given as `to_record`.

An example has numpy values: bytes for text, integers for classes (-1 where a test set keeps its
answers to itself), lists or arrays for sequences; images stay encoded.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ofa_jax.preprocessing.records import InvalidRecordError, Record

Example = Mapping[str, Any]


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


def text(value: Any) -> str:
    """TFDS's text, bytes or str."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def captioned_image(example: Example) -> Record:
    """`coco_captions`: an image and all of its captions."""
    return {
        "id": str(int(example["image/id"])),
        "image": _encoded(example["image"]),
        "captions": [text(caption) for caption in example["captions"]["text"]],
    }


def article(example: Example) -> Record:
    """`gigaword`: a text and its summary."""
    return {"text": text(example["document"]), "summary": text(example["summary"])}


@dataclasses.dataclass(frozen=True)
class ClassifiedImage:
    """`imagenet2012`: an image and the name of its class.

    class_names: in the order of TFDS's labels, that is, of the WordNet ids.
    """

    class_names: tuple[str, ...]

    def __call__(self, example: Example) -> Record:
        record = {"id": text(example.get("file_name", b"")), "image": _encoded(example["image"])}
        label = int(example["label"])
        if label < 0:
            return record
        if label >= len(self.class_names):
            raise InvalidRecordError(
                f"its label is {label}, but there are {len(self.class_names)} class names"
            )
        return record | {"label": self.class_names[label]}


@dataclasses.dataclass(frozen=True)
class LabelledSentences:
    """`glue/...`: one or two sentences, and the answer that a label stands for.

    Attributes:
      columns: the sentences.
      answers: in the order of TFDS's labels.
    """

    columns: tuple[str, ...]
    answers: tuple[str, ...]

    def __call__(self, example: Example) -> Record:
        record = {"id": str(int(example["idx"]))}
        record |= {column: text(example[column]) for column in self.columns}
        label = int(example["label"])
        return record | {"label": self.answers[label]} if label >= 0 else record


def _encoded(image: Any) -> bytes:
    if not isinstance(image, bytes):
        raise ValueError(
            "TFDS gave a decoded image: records hold encoded ones; give TfdsRecords "
            "decoders={'image': tfds.decode.SkipDecoding()}."
        )
    return image


_MNLI_SPLITS = {
    "validation": "validation_matched",
    "validation_mismatched": "validation_mismatched",
    "test": "test_matched",
    "test_mismatched": "test_mismatched",
}
# Not the order of the original's own files.
_ENTAILMENT = ("yes", "no")


@dataclasses.dataclass(frozen=True)
class TfdsForm:
    """How TFDS has a data set.

    Attributes:
      name: of the data set.
      to_record: of its examples; None where it needs the class names.
      image: whether it has a feature `image`, to be left encoded.
      splits: our split -> TFDS's, where they differ.
    """

    name: str
    to_record: Callable[[Example], Record] | None
    image: bool = False
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def open(
        self,
        split: str,
        name: str | None = None,
        data_dir: str | None = None,
        to_record: Callable[[Example], Record] | None = None,
    ) -> TfdsRecords:
        """The records of a split; `name` may add a version, `to_record` where there is none."""
        decoders = None
        if self.image:
            import tensorflow_datasets as tfds

            decoders = {"image": tfds.decode.SkipDecoding()}
        return TfdsRecords(
            name or self.name,
            self.splits.get(split, split),
            to_record or self.to_record,
            data_dir,
            decoders,
        )


def _glue(name: str, columns: tuple[str, ...], answers: tuple[str, ...], **options) -> TfdsForm:
    return TfdsForm(f"glue/{name}", LabelledSentences(columns, answers), **options)


FORMS: Mapping[str, TfdsForm] = {
    "caption": TfdsForm("coco_captions/2014", captioned_image, image=True),
    "imagenet": TfdsForm("imagenet2012", None, image=True),
    "gigaword": TfdsForm("gigaword", article),
    "cola": _glue("cola", ("sentence",), ("no", "yes")),
    "sst2": _glue("sst2", ("sentence",), ("negative", "positive")),
    "mrpc": _glue("mrpc", ("sentence1", "sentence2"), ("no", "yes")),
    "qqp": _glue("qqp", ("question1", "question2"), ("no", "yes")),
    "mnli": _glue("mnli", ("premise", "hypothesis"), ("yes", "maybe", "no"), splits=_MNLI_SPLITS),
    "qnli": _glue("qnli", ("question", "sentence"), _ENTAILMENT),
    "rte": _glue("rte", ("sentence1", "sentence2"), _ENTAILMENT),
}
"""Data of a downstream task -> how TFDS has them. The others are not in TFDS."""
