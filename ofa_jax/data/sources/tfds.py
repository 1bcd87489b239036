"""TFDS data sets through the TFDS API: random access, and the downstream data sets that TFDS has.

An example of TFDS has numpy values: bytes for text, integers for classes (-1 where a test set has
no public labels), lists or arrays for sequences. Images stay encoded. Pretraining data that is
stored as parquet is read by `tfds_parquet` instead, without TensorFlow.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from ofa_jax.preprocessing.record_fields import NOT_UTF8
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils.bad_input import note

TfdsExample = Mapping[str, Any]
ToRecord = Callable[[TfdsExample], Record]


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """A RecordSource over a TFDS data set that is stored as array_record or parquet.

    Attributes:
      name: the name of the data set, e.g. "coco_captions/2014".
      split: the split in TFDS's notation, e.g. "train[:1%]".
      to_record: converts a TFDS example to a record.
      data_dir: the folder of TFDS; its default if None.
      decoders: TFDS's decoders; `{"image": tfds.decode.SkipDecoding()}` keeps the image encoded.
    """

    name: str
    split: str
    to_record: ToRecord
    data_dir: str | None = None
    decoders: Any = None

    def _source(self) -> Any:
        """Opens the data set, once per process; it is not pickled."""
        if "_opened" not in self.__dict__:
            object.__setattr__(self, "_opened", self._open())
        return self.__dict__["_opened"]

    def _open(self) -> Any:
        """Opens the data set.

        Raises:
          FileNotFoundError: a shard is missing.
          ValueError: TFDS cannot open it, or it has another number of records than was stored.
        """
        import tensorflow_datasets as tfds

        try:
            opened = tfds.data_source(
                self.name,
                split=self.split,
                data_dir=self.data_dir,
                download=False,
                decoders=self.decoders,
            )
            stored = opened.dataset_info.splits[self.split]
            expected = stored.num_examples
            names = [str(part.filename) for part in stored.file_instructions]
        # A missing, damaged or unknown data set makes TFDS raise exceptions of many types.
        except Exception as error:
            problem = " ".join(str(error).split())
            raise ValueError(
                f"TFDS cannot open {self.name}, split {self.split}, in "
                f"{self.data_dir or 'its default folder'} ({type(error).__name__}: {problem}): "
                "build it there as array_record or parquet, or check name, split and folder."
            ) from error
        if missing := [name for name in names if not os.path.isfile(name)]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(names)} shards of {self.name}, split {self.split}, are "
                f"missing: {', '.join(missing[:5])}. Copy them there, or build the data set again."
            )
        if len(opened) != expected:
            raise ValueError(
                f"{self.name}, split {self.split}, has {len(opened):,} records, but {expected:,} "
                "were stored: a shard is damaged, or its format has no parts of splits (parquet)."
            )
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __len__(self) -> int:
        return len(self._source())

    def __getitem__(self, index: int) -> Record:
        return self.to_record(self._source()[index])


# ------------------------------------------------------------------------ from examples to records


def decode_text(value: Any) -> str:
    """Decodes a text of TFDS, which is bytes or str; what is not UTF-8 becomes U+FFFD."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        note(NOT_UTF8, f"a text has bytes that are not UTF-8: {value[:40]!r}")
        return value.decode("utf-8", "replace")


def captioned_image_record(example: TfdsExample) -> Record:
    """Converts an example of `coco_captions`: an image and all of its captions."""
    return {
        "id": str(int(example["image/id"])),
        "image": _encoded_image(example["image"]),
        "captions": [decode_text(caption) for caption in example["captions"]["text"]],
    }


def article_record(example: TfdsExample) -> Record:
    """Converts an example of `gigaword`: a text and its summary."""
    return {"text": decode_text(example["document"]), "summary": decode_text(example["summary"])}


@dataclasses.dataclass(frozen=True)
class ClassifiedImageRecord:
    """Converts an example of `imagenet2012`: an image and the name of its class.

    Attributes:
      class_names: in the order of TFDS's labels, which is that of the WordNet ids.
    """

    class_names: tuple[str, ...]

    def __call__(self, example: TfdsExample) -> Record:
        """Converts one example. Raises InvalidRecordError if the label has no class name."""
        record = {
            "id": decode_text(example.get("file_name", b"")),
            "image": _encoded_image(example["image"]),
        }
        label = int(example["label"])
        if label < 0:
            return record
        if label >= len(self.class_names):
            raise InvalidRecordError(
                f"its label is {label}, but there are {len(self.class_names)} class names"
            )
        return record | {"label": self.class_names[label]}


@dataclasses.dataclass(frozen=True)
class LabelledSentencesRecord:
    """Converts an example of `glue/...`: one or two sentences and a label.

    Attributes:
      columns: the sentences.
      targets: the target of each label, in the order of TFDS's labels.
    """

    columns: tuple[str, ...]
    targets: tuple[str, ...]

    def __call__(self, example: TfdsExample) -> Record:
        """Converts one example."""
        record = {"id": str(int(example["idx"]))}
        record |= {column: decode_text(example[column]) for column in self.columns}
        label = int(example["label"])
        return record | {"label": self.targets[label]} if label >= 0 else record


def _encoded_image(image: Any) -> bytes:
    """Returns the image. Raises ValueError if TFDS has decoded it."""
    if not isinstance(image, bytes):
        raise ValueError(
            "TFDS gave a decoded image: records hold encoded ones; give TfdsRecords "
            "decoders={'image': tfds.decode.SkipDecoding()}."
        )
    return image


# ---------------------------------------------------------------------------- known data sets


@dataclasses.dataclass(frozen=True)
class TfdsDataSet:
    """A data set of TFDS that a downstream task can read.

    Attributes:
      name: the name of the data set in TFDS.
      to_record: converts its examples; None if that needs the names of the classes.
      image: whether it has a feature `image`, which is to stay encoded.
      splits: our split -> TFDS's, where they differ.
    """

    name: str
    to_record: ToRecord | None
    image: bool = False
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def open(
        self,
        split: str,
        name: str | None = None,
        data_dir: str | None = None,
        to_record: ToRecord | None = None,
    ) -> TfdsRecords:
        """Opens a split.

        Args:
          split: our name of the split.
          name: the name of the data set with a version, if another one than TFDS's default.
          data_dir: the folder of TFDS.
          to_record: must be given if the data set has none.
        """
        to_record = to_record or self.to_record
        if to_record is None:
            raise ValueError(f"{self.name} needs the names of its classes: give a to_record.")
        decoders = None
        if self.image:
            import tensorflow_datasets as tfds

            decoders = {"image": tfds.decode.SkipDecoding()}
        return TfdsRecords(
            name or self.name, self.splits.get(split, split), to_record, data_dir, decoders
        )


_MNLI_SPLITS = {
    "validation": "validation_matched",
    "validation_mismatched": "validation_mismatched",
    "test": "test_matched",
    "test_mismatched": "test_mismatched",
}
# TFDS's order of labels, which is not that of the files of GLUE.
_ENTAILED = ("yes", "no")


def _sentences(
    name: str,
    columns: tuple[str, ...],
    targets: tuple[str, ...],
    splits: Mapping[str, str] | None = None,
) -> TfdsDataSet:
    """Returns a data set of GLUE."""
    to_record = LabelledSentencesRecord(columns, targets)
    return TfdsDataSet(f"glue/{name}", to_record, splits=splits or {})


TFDS_DATA_SETS: Mapping[str, TfdsDataSet] = {
    "caption": TfdsDataSet("coco_captions/2014", captioned_image_record, image=True),
    "imagenet": TfdsDataSet("imagenet2012", None, image=True),
    "gigaword": TfdsDataSet("gigaword", article_record),
    "cola": _sentences("cola", ("sentence",), ("no", "yes")),
    "sst2": _sentences("sst2", ("sentence",), ("negative", "positive")),
    "mrpc": _sentences("mrpc", ("sentence1", "sentence2"), ("no", "yes")),
    "qqp": _sentences("qqp", ("question1", "question2"), ("no", "yes")),
    "mnli": _sentences("mnli", ("premise", "hypothesis"), ("yes", "maybe", "no"), _MNLI_SPLITS),
    "qnli": _sentences("qnli", ("question", "sentence"), _ENTAILED),
    "rte": _sentences("rte", ("sentence1", "sentence2"), _ENTAILED),
}
"""The data of a downstream task -> the data set in TFDS; others are not in TFDS."""
