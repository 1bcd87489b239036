"""Inputs of offline jobs with images: TSV, ArrayRecord, TFDS, folders and WebDataset tars.

    open_images(["pairs-*.tsv"])                      lines of id, image in base64 (and caption)
    open_images(["data/ofa/vision_language/train"])   converted by `tools.convert_tsv`
    open_images(["tfds:coco_captions/2014:train"])    stored as array_record or parquet
    open_images(["photos/"])                          image files; a.txt beside a.jpg is its caption
    open_images(["shards/{00000..00009}.tar"])        WebDataset: a.jpg, a.txt, b.jpg, b.txt

An input gives each record by its number, and says where it is from. Workers receive it as a pickle,
and open it again.
"""

import base64
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ofa_jax.data.sources.array_records import DESCRIPTION, FIELDS_OF_FILE, ArrayRecords
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.tfds import TfdsExample, TfdsRecords, decode_text
from ofa_jax.data.sources.tsv_file import OpenTsv, TsvFile, decode_base64
from ofa_jax.data.sources.tsv_records import find_files
from ofa_jax.jobs.image_files import FolderRecords, TarRecords
from ofa_jax.preprocessing.records import InvalidRecordError, Record

__all__ = ["ImageInput", "ImageItem", "open_images"]

_TSV_COLUMNS = ("id", "image", "caption")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclasses.dataclass(frozen=True)
class ImageItem:
    """One image of an input.

    Attributes:
      id: as in the input; tabs and line breaks are not possible in it.
      image: the encoded file.
      caption: None if the input has none.
      text: the image in base64, as it is in a TSV file.
    """

    id: bytes
    image: bytes
    caption: bytes | None = None
    text: bytes | None = None

    @property
    def base64(self) -> bytes:
        """The image in base64, as it was where it was in base64."""
        return base64.urlsafe_b64encode(self.image) if self.text is None else self.text


class ImageInput(Protocol):
    """Images by number; picklable, as workers open it."""

    def __len__(self) -> int: ...

    def item(self, number: int) -> ImageItem:
        """Returns an image. Raises InvalidRecordError, or what a damaged input makes it raise."""

    def location(self, number: int) -> str:
        """Returns where an image is, for people."""

    def identity(self) -> dict[str, Any]:
        """Returns what its records depend on, JSON."""


@dataclasses.dataclass(frozen=True)
class TsvImages:
    """Lines of id, image in base64, and what else the file has.

    Attributes:
      paths: the files in order.
      index_dir: the folder of the indices; None for those of the files.
    """

    paths: tuple[str, ...]
    index_dir: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "index_dir": self.index_dir}

    @functools.cached_property
    def _opened(self) -> tuple[OpenTsv, ...]:
        return tuple(TsvFile(path, None, self.index_dir).open() for path in self.paths)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(lines) for lines in self._opened])

    @property
    def num_columns(self) -> int:
        """The least number of columns that most lines of a file have."""
        return min(lines.num_columns for lines in self._opened)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, number: int) -> tuple[OpenTsv, int]:
        file = int(np.searchsorted(self._ends, number, side="right"))
        lines = self._opened[file]
        return lines, number - int(self._ends[file]) + len(lines)

    def item(self, number: int) -> ImageItem:
        """Returns a line. Raises InvalidRecordError."""
        lines, line = self._find(number)
        columns = lines.columns(line)
        caption = columns[2] if len(columns) > 2 else None
        return ImageItem(columns[0], decode_base64(columns[1]), caption, columns[1])

    def location(self, number: int) -> str:
        """Returns the file and the line, counted from 1."""
        lines, line = self._find(number)
        return f"{lines.path}, line {lines.line_number(line)}"

    def identity(self) -> dict[str, Any]:
        """Returns the files with size and time."""
        return {"tsv": [_file_identity(path) for path in self.paths]}


@dataclasses.dataclass(frozen=True)
class RecordImages:
    """The images of any source of records with `image`, and `id` and `captions` where it has them.

    Attributes:
      source: the records.
      name: of the source, for people.
      about: what the records depend on.
    """

    source: RecordSource
    name: str
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.source)

    def item(self, number: int) -> ImageItem:
        """Returns a record's image and its first caption. Raises InvalidRecordError."""
        record = self.source[number]
        if not isinstance(record.get("image"), bytes):
            raise InvalidRecordError("it has no image")
        captions = record.get("captions") or [None]
        identifier = _one_line(record.get("id") or str(number))
        return ImageItem(
            identifier, record["image"], None if captions[0] is None else _one_line(captions[0])
        )

    def location(self, number: int) -> str:
        """Returns where the source has the record."""
        find = getattr(self.source, "location", None)
        return find(number) if find else f"{self.name}, record {number}"

    def identity(self) -> dict[str, Any]:
        """Returns `about`, and the number of records."""
        return {**self.about, "records": len(self)}


@dataclasses.dataclass(frozen=True)
class TfdsImageRecord:
    """Converts an example of any TFDS data set with encoded images and perhaps captions."""

    def __call__(self, example: TfdsExample) -> Record:
        """Converts one example."""
        record: dict[str, Any] = {"image": example.get("image")}
        for name in ("image/id", "image_id", "id", "file_name", "image/filename"):
            if name in example:
                value = example[name]
                record["id"] = decode_text(value) if isinstance(value, bytes) else str(value)
                break
        captions: Any = example.get("captions", example.get("caption"))
        if isinstance(captions, Mapping):
            captions = captions.get("text")
        if captions is not None:
            several = [captions] if isinstance(captions, bytes | str) else list(captions)
            record["captions"] = [decode_text(caption) for caption in several]
        return record


def open_images(
    paths: Sequence[str], *, index_dir: str | None = None, tfds_data_dir: str | None = None
) -> ImageInput:
    """Opens the images of an input; its form follows from its name and content.

    Args:
      paths: see the module's text; several TSV files or tars are one input.
      index_dir: where indices of TSV files and tars go, if not beside them.
      tfds_data_dir: the folder of TFDS; its default if None.

    Raises:
      FileNotFoundError, ValueError: there is no such input, or it is of no known form.
    """
    first = paths[0]
    if first.startswith("tfds:"):
        return _open_tfds(_single(paths), tfds_data_dir)
    if os.path.isdir(first):
        folder = _single(paths)
        if (pathlib.Path(folder) / DESCRIPTION).is_file():
            return _open_array_records(folder)
        return RecordImages(FolderRecords(folder), folder, FolderRecords(folder).identity())
    found = find_files([part for path in paths for part in _expand(path)])
    tars = [path.endswith(".tar") for path in found]
    if all(tars):
        return RecordImages(
            TarRecords(found, index_dir), "tars", {"tars": [*map(_file_identity, found)]}
        )
    if any(tars):
        raise ValueError(f"{', '.join(paths)} are tars and other files: give one form at a time.")
    if compressed := [path for path in found if path.endswith((".tar.gz", ".tgz", ".tar.zst"))]:
        raise ValueError(
            f"{compressed[0]} is a compressed tar, which has no random access: unpack it to a .tar."
        )
    return TsvImages(found, index_dir)


def _open_tfds(name: str, data_dir: str | None) -> RecordImages:
    """Opens "tfds:NAME:SPLIT"."""
    parts = re.fullmatch(r"tfds:(?P<name>[^\s]+?):(?P<split>[\w\[\]:%+.-]+)", name)
    if parts is None:
        raise ValueError(f"{name} is not tfds:NAME:SPLIT, such as tfds:coco_captions/2014:train.")
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    source = TfdsRecords(parts["name"], parts["split"], TfdsImageRecord(), data_dir, decoders)
    return RecordImages(source, f"{parts['name']}, {parts['split']}", {"tfds": name})


def _open_array_records(folder: str) -> RecordImages:
    """Opens <data_dir>/<kind of file>/<split>."""
    kind = pathlib.Path(folder).resolve().parent.name
    if "image" not in FIELDS_OF_FILE.get(kind, ()):
        raise ValueError(
            f"{folder} has no images: give the folder of a split, such as "
            "data/ofa/vision_language/train."
        )
    about = {"array_records": _file_identity(os.path.join(folder, DESCRIPTION))}
    return RecordImages(ArrayRecords(folder, kind), folder, about)


def _single(paths: Sequence[str]) -> str:
    if len(paths) > 1:
        raise ValueError(f"{paths[0]} cannot be joined with {paths[1]}: give one of them.")
    return paths[0]


def _expand(path: str) -> Iterator[str]:
    """Yields the names that {00000..00012} in a path stands for, as WebDataset writes them."""
    found = _RANGE.search(path)
    if found is None:
        yield path
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expand(
            f"{path[: found.start()]}{number:0{len(found[1])}d}{path[found.end() :]}"
        )


def _file_identity(path: str) -> dict[str, Any]:
    """Returns what tells that a file is another one."""
    status = os.stat(path)
    return {"path": os.path.abspath(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _one_line(text: Any) -> bytes:
    """Returns a text as a column of a TSV line."""
    encoded = text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")
    return b" ".join(encoded.split())
