"""Data sets of TFDS for the pretraining objectives, by their names.

    DATA_SET = @TfdsData()
    TfdsData.name = 'ref_coco/refcoco_unc'

TFDS_FIELDS says which feature is which field of a record, for the data sets that it lists; `fields`
does so for any other. Boxes of TFDS are shares of the image, y first. The data set must be built,
as array_record or parquet; nothing is downloaded.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from ofa_jax.data.sources.base import RecordSource, WrongDataOptionError
from ofa_jax.data.sources.field_table import BoxFormat, FieldTable, Row
from ofa_jax.data.sources.table_rows import Rows
from ofa_jax.data.sources.tables import TableDataSet
from ofa_jax.data.sources.tfds import TfdsRecords, decode_text
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

_OBJECTS = {"object_labels": "objects.label", "object_boxes": "objects.bbox"}
_BOXABLE = {"object_labels": "bobjects.label", "object_boxes": "bobjects.bbox"}
TFDS_FIELDS: Mapping[str, Mapping[str, str]] = {
    "coco_captions": {"id": "image/id", "captions": "captions.text", **_OBJECTS},
    "coco": {"id": "image/id", **_OBJECTS},
    "lvis": {"id": "image/id", **_OBJECTS},
    "voc": {"id": "image/filename", **_OBJECTS},
    "open_images_v4": {"id": "image/filename", **_BOXABLE},
    "open_images_challenge2019_detection": {"id": "id", **_BOXABLE},
    "ref_coco": {"id": "image/id"},
    "wikipedia": {"id": "title"},
    "c4": {"id": "url"},
    "lm1b": {},
}
"""Data set of TFDS -> field of the record -> its feature, where the names differ."""
_NO_NAME = re.compile(r"\d+|/[mg]/\w+")  # "17", and "/m/011k07" of Open Images


@dataclasses.dataclass(frozen=True)
class ToRow:
    """Makes rows of examples; see `plain_row`.

    Attributes:
      image: the feature that is the image.
    """

    image: str

    def __call__(self, example: Mapping[str, Any]) -> Row:
        """Returns an example as plain values."""
        return plain_row(example, self.image)


def plain_row(example: Mapping[str, Any], image: str = "image") -> Row:
    """Returns an example of TFDS as plain values; regions of `ref_coco` are joined.

    Each referring expression of an object becomes a phrase with the box of the object.
    """
    row = {name: _plain(value, name == image) for name, value in example.items()}
    objects = row.get("objects")
    if isinstance(objects, dict) and "refexp" in objects:
        expressions = objects["refexp"]
        texts = expressions.get("raw", []) if isinstance(expressions, dict) else []
        if isinstance(expressions, list):
            texts = [one.get("raw", []) for one in expressions]
        pairs = [
            (text, box)
            for own, box in zip(texts, objects.get("bbox", []), strict=False)
            for text in ([own] if isinstance(own, str) else own)
        ]
        row["phrases"] = [text for text, _ in pairs]
        row["phrase_boxes"] = [box for _, box in pairs]
    return row


def _plain(value: Any, is_image: bool = False) -> Any:
    """Returns numpy values as those of Python; texts are decoded."""
    if isinstance(value, np.ndarray) and value.ndim > 2:  # a mask, which no field is
        return None
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return decode_text(value) if isinstance(value, bytes) and not is_image else value


@dataclasses.dataclass(frozen=True)
class TfdsRows:
    """The examples of a split.

    Attributes:
      records: of TFDS, as plain rows.
    """

    records: TfdsRecords

    @property
    def name(self) -> str:
        """The name of the data set."""
        return f"{self.records.name}, split {self.records.split}"

    def __len__(self) -> int:
        return len(self.records)

    def folder_of(self, index: int) -> str:
        """Returns a folder that no image lies in: TFDS stores the images themselves."""
        del index
        return ""

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Reads an example."""
        del fields
        return self.records[index]

    def location(self, index: int) -> str:
        """Returns the data set and the number of an example."""
        return f"{self.name}, example {index}"

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns None: all examples of a data set have the same features."""
        del needed
        return None


@checked
@dataclasses.dataclass(frozen=True)
class TfdsData(TableDataSet):
    """A data set of TFDS.

    Attributes:
      name: in TFDS, with configuration and version where needed, e.g. "ref_coco/refcoco_unc".
      split_names: our split -> TFDS's, e.g. {'train': 'train[:90%]'}.
      data_dir: the folder of TFDS; its default if None.
    """

    name: options.Name
    split_names: Mapping[options.Name, options.Name] = dataclasses.field(
        default_factory=lambda: {"train": "train", "validation": "validation"}
    )
    data_dir: options.Path | None = None
    box_format: BoxFormat = dataclasses.field(default="yxyx", kw_only=True)
    relative_boxes: bool = dataclasses.field(default=True, kw_only=True)

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return tuple(self.split_names)

    def default_fields(self) -> dict[str, str]:
        """Returns the fields of a known data set."""
        return dict(TFDS_FIELDS.get(self.name.split("/")[0].split(":")[0], {}))

    @functools.cached_property
    def _features(self) -> Any:
        """The features of the data set. Raises ValueError if TFDS does not know it."""
        import tensorflow_datasets as tfds

        try:
            return tfds.builder(self.name, data_dir=self.data_dir).info.features
        except Exception as error:  # TFDS raises exceptions of many types
            problem = " ".join(str(error).split())[:200]
            raise WrongDataOptionError(
                f"TFDS has no data set {self.name} ({type(error).__name__}: {problem}): check the "
                "name, and build the data set first."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def rows(self, split: str) -> Rows:
        """Opens a split; images stay encoded."""
        import tensorflow_datasets as tfds

        image = self.table.source_of("image")
        decoders = {image: tfds.decode.SkipDecoding()} if image in self._features else None
        records = TfdsRecords(
            self.name, self.split_names[split], ToRow(image), self.data_dir, decoders
        )
        if split == self.main_split:
            try:
                len(records)
            except ValueError as error:  # a mixture must not leave it out
                raise WrongDataOptionError(str(error)) from error
        return TfdsRows(records)

    def table_of(self, rows: Rows) -> FieldTable:
        """Returns the table, with the names of classes that TFDS knows."""
        del rows
        return dataclasses.replace(self.table, class_names=self.object_names())

    def records(self, kind: str, split: str) -> RecordSource:
        """Returns the records of one of the kinds in `RECORD_FIELDS`.

        Raises:
          ValueError: as for every table, or the classes of objects have no names in words.
        """
        is_class = hasattr(self._label_feature(), "num_classes")
        if kind == "objects" and is_class and not self.object_names():
            raise ValueError(
                f"The classes of {self.name} have numbers or ids in TFDS and no names in words: "
                "give the names in order, as TfdsData.class_names."
            )
        return super().records(kind, split)

    def _label_feature(self) -> Any:
        """Returns the feature that holds the classes of objects; None if there is none."""
        feature: Any = self._features
        try:
            for part in self.table.source_of("object_labels").split("."):
                feature = feature[part]
        except (KeyError, TypeError):
            return None
        return getattr(feature, "feature", feature)

    def object_names(self) -> tuple[str, ...]:
        """Returns the names of the classes of objects; none if TFDS has only numbers or ids."""
        if self.class_names is not None:
            return tuple(self.class_names)
        names = tuple(getattr(self._label_feature(), "names", None) or ())
        return () if all(map(_NO_NAME.fullmatch, names)) else names
