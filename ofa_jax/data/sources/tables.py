"""Data sets whose records are rows of a table: JSON lines, folders, Parquet, tars, COCO, TFDS.

A source has rows: mappings of plain values, with random access. `TableDataSet` makes records of
them by the `FieldTable` that its options describe, finds out which rows have the fields that a kind
of record needs, and samples the false captions of image-text matching from its own rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import overload

import numpy as np
from absl import logging
from jaxtyping import Integer

from ofa_jax.data.sources import table_checks
from ofa_jax.data.sources.base import OBJECTIVES_OF_KIND, RecordSource, WrongDataOptionError
from ofa_jax.data.sources.field_table import (
    BoxFormat,
    ClassNames,
    Fields,
    FieldTable,
)
from ofa_jax.data.sources.file_patterns import Files, Paths, find_files, splits_of
from ofa_jax.data.sources.image_paths import ImageFolder
from ofa_jax.data.sources.table_rows import JoinedRows, Rows
from ofa_jax.preprocessing.negatives import OTHER, NegativePool
from ofa_jax.preprocessing.records import RECORD_FIELDS, InvalidRecordError, Record
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError

__all__ = [
    "OBJECTIVES_OF_KIND",
    "Files",
    "JoinedRows",
    "Paths",
    "Rows",
    "TableDataSet",
    "TableRecords",
    "find_files",
    "splits_of",
]

_TRAIN = "train"
_MAX_DRAWS = 20


@dataclasses.dataclass(frozen=True)
class TableRecords:
    """A RecordSource over the rows of a table that have what a kind of record needs.

    Attributes:
      rows: all of the table.
      kind: a key of RECORD_FIELDS.
      table: makes records of rows.
      allow_outside_images: whether paths of images may lead out of their folder.
      numbers: of the rows; None for all.
    """

    rows: Rows
    kind: str
    table: FieldTable
    allow_outside_images: bool = False
    numbers: Integer[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.numbers is None else len(self.numbers)

    def _number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no record {index}: there are {len(self)}.")
        return int(index if self.numbers is None else self.numbers[index])

    def __getitem__(self, index: int) -> Record:
        number = self._number(index)
        images = ImageFolder(self.rows.folder_of(number), self.allow_outside_images)
        return self.table.record(self.rows.row(number), self.kind, images, number)

    def location(self, index: int) -> str:
        """Returns where a record is stored, for messages."""
        return self.rows.location(self._number(index))


@dataclasses.dataclass(frozen=True)
class RowTexts(Sequence[str]):
    """One text of each row of a table, which stays where it is.

    Attributes:
      records: have the rows.
      field: with texts; the first one of each row is taken.
    """

    records: TableRecords
    field: str

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"There is no text {index}: there are {len(self)}.")
        table, rows = self.records.table, self.records.rows
        needed = [table.source_of(self.field).split(".")[0]]
        for step in range(_MAX_DRAWS):  # the text of the next row takes the place of a damaged one
            number = self.records._number((index + step) % len(self))
            try:
                if texts := table.texts(rows.row(number, needed), self.field):
                    return texts[0]
            except InvalidRecordError:
                continue
        return ""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class TableDataSet:
    """The options that all tables share; `rows` and `splits` are those of a kind of source.

    Attributes:
      fields: field of the record -> field of the source, where they differ; dots lead into a field,
        e.g. {'captions': 'caption', 'object_boxes': 'objects.bbox'}.
      box_format: how the source writes boxes: corners (xyxy), corners with y first (yxyx), a corner
        with width and height (xywh), or the centre with them (cxcywh).
      relative_boxes: whether boxes are shares of the image's width and height, not pixels.
      class_names: the names of classes that the source gives by their numbers, counted from 0.
      allow_outside_images: whether paths of images may lead out of the folder of the source.
      decode_options: how images are decoded, in whose pixels the boxes are.
    """

    fields: Fields = dataclasses.field(default_factory=dict)
    box_format: BoxFormat = "xyxy"
    relative_boxes: bool = False
    class_names: ClassNames = None
    allow_outside_images: bool = False
    decode_options: DecodeOptions = AS_SEEN

    def __post_init__(self) -> None:
        self.table.check(type(self).__name__)

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        raise NotImplementedError

    @property
    def main_split(self) -> str:
        """The split that must have what the options name: "train", or the first one."""
        return _TRAIN if _TRAIN in self.splits else self.splits[0]

    def rows(self, split: str) -> Rows:
        """Opens the rows of a split."""
        raise NotImplementedError

    @property
    def table(self) -> FieldTable:
        """The table that makes records of rows."""
        return FieldTable(
            self.default_fields() | dict(self.fields),
            self.box_format,
            self.relative_boxes,
            tuple(self.class_names or ()),
            self.decode_options,
            tuple(self.fields),
        )

    def default_fields(self) -> dict[str, str]:
        """Returns the fields that have other names in every source of this class."""
        return {}

    def table_of(self, rows: Rows) -> FieldTable:
        """Returns the table for rows that may know more, such as the names of their classes."""
        del rows
        return self.table

    def records(self, kind: str, split: str) -> RecordSource:
        """Returns the records of one of the kinds in `RECORD_FIELDS`.

        Raises:
          FileNotFoundError: a file is missing.
          WrongDataOptionError: `fields` names what no row has, or values are not in the form that
            the options say.
          ValueError: there is no such kind or split, or no row has what the kind needs.
        """
        return self._records(kind, split)

    def _records(self, kind: str, split: str) -> TableRecords:
        name = type(self).__name__
        if kind not in RECORD_FIELDS:
            raise ValueError(
                f"There is no kind of record {kind!r}: choose one of {', '.join(RECORD_FIELDS)}."
            )
        if split not in self.splits:
            raise ValueError(
                f"{name} has no split {split!r}, only {', '.join(self.splits)}: name its files, "
                "or set train.validation_split = None."
            )
        rows = self.rows(split)
        table = self.table_of(rows)
        if split == self.main_split:
            table_checks.check_named_fields(name, rows, table, kind)
        numbers = rows.select(table.needed(kind))
        records = TableRecords(rows, kind, table, self.allow_outside_images, numbers)
        if not len(records) or not table_checks.has_records(rows, numbers, table, kind):
            raise ValueError(table_checks.describe_missing(name, rows, table, kind))
        table_checks.check_values(name, rows, numbers, table, kind)
        if numbers is not None:
            logging.info(
                "%s: %d of %d have what %s need.", rows.name, len(records), len(rows), kind
            )
        return records

    def negatives(self) -> NegativePool:
        """Returns the captions, names and answers of the train split, to sample false ones from."""
        if _TRAIN not in self.splits:
            return NegativePool()
        captions, answers = self._texts("captions"), self._texts("questions", "answers")
        names = self.object_names()
        by_type = {OTHER: answers} if answers is not None else {}
        return NegativePool(captions if captions is not None else (), names, by_type)

    def object_names(self) -> tuple[str, ...]:
        """Returns the names that objects have, as far as they are known without reading rows."""
        return tuple(self.class_names or ())

    def _texts(self, kind: str, field: str | None = None) -> RowTexts | None:
        """Returns one text of each record of a kind; None where there are no such records."""
        try:
            return RowTexts(self._records(kind, _TRAIN), field or kind)
        except (DamagedFileError, WrongDataOptionError):
            raise
        except ValueError:
            return None
