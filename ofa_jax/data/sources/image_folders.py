"""Folders of images, with their texts beside them.

0.jpg, perhaps with 0.txt (captions, one a line) and 0.json (other fields of the record)
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Integer

from ofa_jax.data.sources.base import WrongDataOptionError
from ofa_jax.data.sources.field_table import Row
from ofa_jax.data.sources.file_patterns import split_of_name, splits_of
from ofa_jax.data.sources.image_paths import OUTSIDE_FOLDER, is_below
from ofa_jax.data.sources.json_lines import BAD_JSON, sample_texts
from ofa_jax.data.sources.table_rows import Rows
from ofa_jax.data.sources.tables import TableDataSet
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import options
from ofa_jax.utils.files import open_regular
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.wrong_files import shorten

__all__ = ["IMAGE_SUFFIXES", "FolderRows", "ImageFolderData"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif",
                  ".tiff", ".avif")  # fmt: skip
_OTHER_IMAGES = (".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".eps", ".raw", ".cr2", ".nef")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.json", "captions.txt")
_NAMED = 3
_MAX_TEXT_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class FolderRows:
    """The images of a folder with the texts that lie beside them.

    Attributes:
      folder: of all images.
      paths: of the images, relative to it.
      hint: for the sentence about images without texts; "" or ends in a space.
      allow_outside: whether links to texts may lead out of the folder.
    """

    folder: str
    paths: tuple[str, ...]
    hint: str = ""
    allow_outside: bool = False

    @property
    def name(self) -> str:
        """The folder."""
        return self.folder

    def __len__(self) -> int:
        return len(self.paths)

    def folder_of(self, index: int) -> str:
        """Returns the folder that paths of images are relative to."""
        del index
        return self.folder

    def location(self, index: int) -> str:
        """Returns the path of an image."""
        return os.path.join(self.folder, self.paths[index])

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Reads the texts beside an image. Raises InvalidRecordError if one cannot be read."""
        del fields
        path = self.paths[index]
        row: dict[str, Any] = {"id": path, "image": path}
        stem = os.path.join(self.folder, os.path.splitext(path)[0])
        if (text := self._text(f"{stem}.txt")) is not None:
            row |= sample_texts("txt", text)
        if (text := self._text(f"{stem}.json")) is not None:
            row |= {k: v for k, v in sample_texts("json", text).items() if k != "image"}
        if parent := os.path.dirname(path):
            row.setdefault("label", os.path.basename(parent))
        return row

    def _text(self, path: str) -> bytes | None:
        """Returns the content of a file; None if there is none."""
        if not os.path.lexists(path):
            return None
        if not self.allow_outside and not is_below(path, self.folder):
            raise InvalidRecordError(
                f"{os.path.basename(path)} is outside the folder {self.folder}: move it there, or "
                "set allow_outside_images = True of the data set",
                OUTSIDE_FOLDER,
            )
        try:
            with open_regular(path) as file:
                return file.read(_MAX_TEXT_BYTES)
        except OSError as error:
            raise InvalidRecordError(
                f"{os.path.basename(path)} cannot be read ({error.strerror})", BAD_JSON
            ) from error

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the images that have a text beside them, where one is needed."""
        if any(set(names) <= {"id", "image"} for names in needed):
            return None
        if any(set(names) <= {"id", "image", "label"} for names in needed):
            inside = [bool(os.path.dirname(path)) for path in self.paths]
            return None if all(inside) else np.flatnonzero(inside).astype(np.uint32)
        has_text = [
            any(os.path.lexists(os.path.join(self.folder, stem + end)) for end in (".txt", ".json"))
            for stem in (os.path.splitext(path)[0] for path in self.paths)
        ]
        return None if all(has_text) else np.flatnonzero(has_text).astype(np.uint32)


@checked
@dataclasses.dataclass(frozen=True)
class ImageFolderData(TableDataSet):
    """A folder of images: `a/0.jpg`, its captions in `a/0.txt`, other fields in `a/0.json`.

    Images without a text beside them are records for image infilling alone. The folder that an
    image is in is its field `label`.

    Attributes:
      folders: a folder, or a dict from split to folder; folders in them are read too.
    """

    folders: Mapping[options.Name, options.Path] | options.Path

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return splits_of(self.folders)

    def rows(self, split: str) -> Rows:
        """Lists the images of a split, in the order of their names.

        Raises:
          FileNotFoundError: there is no such folder, or no image in it.
          OSError: a folder in it cannot be read.
          WrongDataOptionError: it has folders of several splits.
        """
        folder = self.folders if isinstance(self.folders, str) else self.folders[split]
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"There is no folder {folder}: check the path.")
        _refuse_folders_of_splits(folder)
        images: list[str] = []
        others: list[str] = []
        for parent, names in _walk(folder):
            relative = os.path.relpath(parent, folder)
            for name in names:
                own = images if name.lower().endswith(IMAGE_SUFFIXES) else others
                own.append(os.path.normpath(os.path.join(relative, name)))
        if not images:
            raise FileNotFoundError(
                f"There are no images in {folder}: their names end in {', '.join(IMAGE_SUFFIXES)}."
            )
        _warn_of_others(folder, images, others)
        metadata = ", ".join(name for name in others if name in _METADATA)
        hint = (
            f"texts are looked for beside each image, not in {metadata}; JsonData reads lines "
            f'such as {{"image": "{shorten(images[0])}", "captions": ["a text"]}}; '
        )
        return FolderRows(folder, tuple(images), hint * bool(metadata), self.allow_outside_images)


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yields folders and the names of their files, in order, without hidden ones.

    Links to folders are followed once each; what is in them is read only if
    `allow_outside_images` allows it, and counted otherwise.
    """

    def refuse(error: OSError) -> None:
        raise OSError(
            f"The folder {error.filename} cannot be read ({error.strerror}): allow it, or move it "
            "elsewhere."
        )

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, sorted(name for name in names if not name.startswith("."))


def _refuse_folders_of_splits(folder: str) -> None:
    """Raises WrongDataOptionError if the folders in a folder are those of splits."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    by_split = {split: name for name in names if (split := split_of_name(name)) is not None}
    if len(by_split) > 1:
        shown = ", ".join(
            f"{split!r}: {os.path.join(folder, name)!r}" for split, name in by_split.items()
        )
        raise WrongDataOptionError(
            f"{folder} has folders of several splits, which would all be read as one: set "
            f"ImageFolderData.folders = {{{shown}}}."
        )


def _warn_of_others(folder: str, images: Sequence[str], others: Sequence[str]) -> None:
    """Warns of texts without an image, and of images in formats that are not read."""
    stems = {os.path.splitext(path)[0] for path in images}
    alone = [
        path
        for path in others
        if path.lower().endswith((".txt", ".json"))
        and not (path.endswith((".txt", ".json")) and os.path.splitext(path)[0] in stems)
    ]
    unread = [path for path in others if path.lower().endswith(_OTHER_IMAGES)]
    for found, what in (
        (alone, "texts have no image of their name beside them (0.jpg with 0.txt or 0.json)"),
        (unread, f"images are in formats that are not read (only {', '.join(IMAGE_SUFFIXES)})"),
    ):
        if found:
            shown = ", ".join(map(shorten, found[:_NAMED]))
            _warn_once(f"{folder}: {len(found)} {what}, e.g. {shown}.")


@functools.lru_cache(maxsize=64)
def _warn_once(sentence: str) -> None:
    """Warns, though each kind of record looks into the folder."""
    logging.warning("%s", sentence)
