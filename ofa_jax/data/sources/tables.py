"""Data sets whose records are rows of a table: JSON lines, folders, Parquet, tars, COCO, TFDS.

A source has rows: mappings of plain values, with random access. `TableDataSet` makes records of
them by the `FieldTable` that its options describe, finds out which rows have the fields that a kind
of record needs, and samples the false captions of image-text matching from its own rows.
"""

import dataclasses
import glob
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, overload

import numpy as np
from jaxtyping import Integer

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.field_table import (
    BoxFormat,
    ClassNames,
    Fields,
    FieldTable,
    Row,
    has_value,
)
from ofa_jax.data.sources.image_paths import ImageFolder
from ofa_jax.preprocessing.negatives import OTHER, NegativePool
from ofa_jax.preprocessing.records import RECORD_FIELDS, InvalidRecordError, Record
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

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

Paths = options.Path | Annotated[Sequence[options.Path], options.NotEmpty()]
Files = Mapping[options.Name, Paths] | Paths
_TRAIN = "train"
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_SAMPLED_ROWS, _MAX_DRAWS, _MAX_NAMES = 20, 20, 100_000

OBJECTIVES_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "captions": ("image_captioning",),
    "questions": ("visual_question_answering",),
    "pairs": ("image_text_matching",),
    "regions": ("visual_grounding", "grounded_captioning"),
    "objects": ("object_detection",),
    "images": ("image_infilling",),
    "text": ("text_infilling",),
}
"""Kind of record -> the objectives that read it."""


class Rows(Protocol):
    """Random access to the rows of a source; picklable, for data workers.

    Attributes:
      name: of the source, for messages.
    """

    @property
    def name(self) -> str:
        """What messages call the source."""

    def __len__(self) -> int: ...

    def folder_of(self, index: int) -> str:
        """Returns the folder that the path of a row's image is relative to."""

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Returns a row; of its fields those named, if that is cheaper.

        Raises:
          InvalidRecordError: it is damaged.
        """

    def location(self, index: int) -> str:
        """Returns where a row is stored, e.g. "data.jsonl, line 7"."""

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the numbers of the rows that have all fields of one of the sets.

        Rows that are not known to lack them count too; None stands for all rows.
        """


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
    """

    fields: Fields = dataclasses.field(default_factory=dict)
    box_format: BoxFormat = "xyxy"
    relative_boxes: bool = False
    class_names: ClassNames = None
    allow_outside_images: bool = False

    def __post_init__(self) -> None:
        self.table.check(type(self).__name__)

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        raise NotImplementedError

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
        numbers = rows.select(table.needed(kind))
        records = TableRecords(rows, kind, table, self.allow_outside_images, numbers)
        if not len(records) or (numbers is None and not self._sample_has(rows, table, kind)):
            raise ValueError(self._nothing_of(kind, rows, table))
        return records

    def _sample_has(self, rows: Rows, table: FieldTable, kind: str) -> bool:
        """Returns whether a row has what a kind needs, of some that are spread over all."""
        places = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED_ROWS)).astype(int)
        for number in places.tolist():
            try:
                row = rows.row(number)
            except InvalidRecordError:
                return True  # the loader counts it
            if any(all(has_value(row, name) for name in names) for names in table.needed(kind)):
                return True
        return False

    def _nothing_of(self, kind: str, rows: Rows, table: FieldTable) -> str:
        """Returns the sentence for a source without records of a kind."""
        name = type(self).__name__
        if not len(rows):
            return f"{rows.name} has no records: check the path."
        found: dict[str, None] = {}
        for number in range(min(len(rows), _SAMPLED_ROWS)):
            try:
                found.update(dict.fromkeys(map(str, rows.row(number))))
            except InvalidRecordError:
                continue
        wanted = " or ".join(" and ".join(names) for names in table.needed(kind))
        rates = ", ".join(f"'{objective}': 0" for objective in OBJECTIVES_OF_KIND[kind])
        return (
            f"No record of {rows.name} has {wanted}, which records of the kind {kind} need (the "
            f"fields there are {', '.join(list(found)[:12]) or 'none'}): say which field is which "
            f"with {name}.fields = {{'{table.needed(kind)[0][-1]}': 'FIELD'}}, or leave the "
            f"objective out with PretrainingSettings.rates = {{{rates}}}."
        )

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
        except ValueError:
            return None


def find_files(
    owner: str, files: Files, split: str, folder: str = "", suffixes: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the files of a split, in order.

    Args:
      owner: what the sentences call the data set.
      files: a path or a pattern such as "part-*.jsonl" or "part-{000..012}.tar", a list of either,
        or a dict from split to them.
      split: a key of it; "train" where there is no dict.
      folder: that they are relative to.
      suffixes: of the files that a folder stands for.

    Raises:
      FileNotFoundError: a path does not exist, or nothing fits a pattern.
    """
    by_split = files if isinstance(files, Mapping) else {_TRAIN: files}
    given = by_split[split]
    found: list[str] = []
    for name in expand_ranges([given] if isinstance(given, str) else given):
        path = pathlib.Path(folder, name)
        if path.is_dir() and suffixes:
            fitting = [p for p in path.iterdir() if p.name.endswith(tuple(suffixes))]
        elif path.exists():
            fitting = [path]
        else:
            fitting = list(_glob(path))
        if not fitting:
            raise FileNotFoundError(
                f"There is no file {path} (of {owner}, split {split}): check the path."
            )
        found += sorted(str(one) for one in fitting if not one.name.startswith("."))
    return tuple(dict.fromkeys(found))


def expand_ranges(names: Sequence[str]) -> list[str]:
    """Returns names with each range of numbers in braces written out: "{08..11}" is 08, 09, 10, 11.

    Raises:
      ValueError: a range stands for too many names.
    """
    expanded: list[str] = []
    for name in names:
        found = _RANGE.search(name)
        if found is None:
            expanded.append(name)
            continue
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + _MAX_NAMES:
            raise ValueError(f"{name}: the numbers in braces are no range of files.")
        width = len(found[1])
        expanded += expand_ranges(
            [
                f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}"
                for number in range(first, last + 1)
            ]
        )
    return expanded


def _glob(path: pathlib.Path) -> Sequence[pathlib.Path]:
    """Returns what fits a pattern; only files."""
    if not glob.has_magic(str(path)):
        return []
    return [pathlib.Path(name) for name in glob.glob(str(path), recursive=True)]


def splits_of(files: Files) -> tuple[str, ...]:
    """Returns the splits of files, "train" where they are given without any."""
    return tuple(files) if isinstance(files, Mapping) else (_TRAIN,)


@dataclasses.dataclass(frozen=True)
class JoinedRows:
    """The rows of several files, one after the other.

    Attributes:
      parts: the rows of each file.
    """

    parts: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The name of the first file, and how many there are."""
        first = self.parts[0].name
        return first if len(self.parts) == 1 else f"{first} and {len(self.parts) - 1} more"

    @property
    def _starts(self) -> np.ndarray:
        if "_cached" not in self.__dict__:
            starts = np.cumsum([0, *(len(part) for part in self.parts)])
            object.__setattr__(self, "_cached", starts)
        return self.__dict__["_cached"]

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, index: int) -> tuple[Any, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part], index - int(self._starts[part])

    def folder_of(self, index: int) -> str:
        """Returns the folder that the path of a row's image is relative to."""
        part, number = self._find(index)
        return part.folder_of(number)

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Returns a row of the file that has it."""
        part, number = self._find(index)
        return part.row(number, fields)

    def location(self, index: int) -> str:
        """Returns the file and the place in it."""
        part, number = self._find(index)
        return part.location(number)

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the rows that have all fields of one of the sets; None for all."""
        chosen = [part.select(needed) for part in self.parts]
        if all(numbers is None for numbers in chosen):
            return None
        every = [
            np.arange(len(part)) if numbers is None else numbers
            for part, numbers in zip(self.parts, chosen, strict=True)
        ]
        return np.concatenate(
            [numbers + start for numbers, start in zip(every, self._starts[:-1], strict=True)]
        )
