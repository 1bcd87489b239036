"""JSON files in the format of COCO: captions, instances (objects), and both of the same images.

    {"images": [{"id": 7, "file_name": "7.jpg"}], "categories": [{"id": 1, "name": "dog"}],
     "annotations": [{"image_id": 7, "caption": "A dog."},
                     {"image_id": 7, "category_id": 1, "bbox": [x, y, width, height]}]}

A record is an image with all its captions, objects, questions (`question`, `answer`) and referring
expressions (`sentences` or `phrase` of an annotation with a box). A file is parsed once; data
workers receive its records, packed. Crowds (`iscrowd`) are no objects.
"""

import array
import collections
import dataclasses
import functools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from ofa_jax.data.sources.field_table import Row
from ofa_jax.data.sources.json_lines import parse_line
from ofa_jax.data.sources.tables import (
    Files,
    Rows,
    TableDataSet,
    find_files,
    splits_of,
)
from ofa_jax.utils import options
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.json_values import to_json
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError, read_json

BAD_ANNOTATION = declare(
    "malformed annotation",
    Treatment.DROPPED,
    "An annotation of a COCO file is no object, belongs to no image of the file, or has neither a "
    "caption nor a box of a known category nor a question.",
    __name__,
)
_FIELDS = ("captions", "object_labels", "questions", "phrases")


@dataclasses.dataclass(frozen=True)
class CocoRows:
    """The images of COCO files with their annotations, each packed as a line of JSON.

    Attributes:
      name: of the first file.
      image_folder: that the names of images are relative to.
      lines: of all images, one after the other.
      ends: where each line ends.
      present: for each image, a bit for each of `_FIELDS` that it has.
    """

    name: str
    image_folder: str
    lines: bytes
    ends: Integer[np.ndarray, " images"]
    present: Integer[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.ends)

    def folder_of(self, index: int) -> str:
        """Returns the folder that the names of images are relative to."""
        del index
        return self.image_folder

    def location(self, index: int) -> str:
        """Returns the file and the id of an image."""
        return f"{self.name}, image {self.row(index)['id']}"

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Returns an image with all its annotations."""
        del fields
        start = int(self.ends[index - 1]) if index else 0
        return parse_line(self.lines[start : int(self.ends[index])])

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the images with all fields of one of the sets."""
        chosen = np.zeros(len(self), bool)
        for names in needed:
            own = np.ones(len(self), bool)
            for bit, field in enumerate(_FIELDS):
                if field in names:
                    own &= (self.present >> bit & 1).astype(bool)
            chosen |= own if set(names) <= _ROW_FIELDS else np.zeros(len(self), bool)
        return None if chosen.all() else np.flatnonzero(chosen).astype(np.uint32)


_ROW_FIELDS = {"id", "image", "captions", "object_labels", "object_boxes", "questions", "answers",
               "phrases", "phrase_boxes"}  # fmt: skip


def read_coco(paths: Sequence[str], image_folder: str) -> CocoRows:
    """Parses COCO files; annotations of several files of the same images are joined.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedFileError: one is no JSON, or not in the format of COCO.
    """
    images: dict[Any, dict[str, Any]] = {}
    dropped: collections.Counter[str] = collections.Counter()
    for path in paths:
        content = _read(path)
        for number, image in enumerate(content["images"]):
            if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
                raise DamagedFileError(f"{path}: number {number + 1} of its images has no id.")
            name = image.get("file_name")
            images.setdefault(image["id"], {"id": str(image["id"]), "image": name})
        categories = _categories(content.get("categories"))
        for annotation in content.get("annotations") or ():
            problem = _add(annotation, images, categories)
            if problem is not None:
                dropped[f"{path}: {problem}"] += 1
    for problem, count in dropped.items():
        note(BAD_ANNOTATION, f"{count:,} annotations of {problem}")
    return _pack(paths[0], image_folder, images.values())


def _read(path: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DamagedFileError(
            f"{path} is not in the format of COCO: it must be an object with `images` and "
            "`annotations`."
        )
    if not isinstance(content.get("annotations") or [], list):
        raise DamagedFileError(f"{path} is not in the format of COCO: `annotations` is no list.")
    return content


def _categories(given: Any) -> dict[Any, str]:
    """Returns id -> name of the categories; others are left out."""
    return {
        one["id"]: one["name"]
        for one in (given if isinstance(given, list) else ())
        if isinstance(one, dict)
        and isinstance(one.get("id"), int | str)
        and isinstance(one.get("name"), str)
    }


def _add(annotation: Any, images: Mapping[Any, dict], categories: Mapping[Any, str]) -> str | None:
    """Adds an annotation to its image; returns why it cannot be used, if so."""
    if not isinstance(annotation, dict):
        return "are no objects"
    image_id = annotation.get("image_id")
    image = images.get(image_id) if isinstance(image_id, int | str) else None
    if image is None:
        return "belong to no image of the file"
    used = False
    if isinstance(caption := annotation.get("caption"), str):
        image.setdefault("captions", []).append(caption)
        used = True
    question, answer = annotation.get("question"), annotation.get("answer")
    if isinstance(question, str) and isinstance(answer, str):
        image.setdefault("questions", []).append(question)
        image.setdefault("answers", []).append(answer)
        used = True
    if annotation.get("iscrowd") == 1:
        return None
    box = _corners(annotation.get("bbox"))
    if box is None:
        return None if used else "have neither a caption nor a box of four numbers"
    category = annotation.get("category_id")
    name = categories.get(category) if isinstance(category, int | str) else None
    if name is not None:
        image.setdefault("object_labels", []).append(name)
        image.setdefault("object_boxes", []).append(box)
        used = True
    for phrase in _phrases(annotation):
        image.setdefault("phrases", []).append(phrase)
        image.setdefault("phrase_boxes", []).append(box)
        used = True
    return None if used else "have a box of an unknown category"


def _corners(box: Any) -> list[float] | None:
    """Returns x0, y0, x1, y1 of a box x, y, width, height; None if it is something else."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(type(number) in (int, float) and abs(number) < 1e9 for number in box):
        return None
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _phrases(annotation: Mapping[str, Any]) -> list[str]:
    """Returns the referring expressions of an annotation, as RefCOCO's files have them."""
    if isinstance(phrase := annotation.get("phrase"), str):
        return [phrase]
    sentences = annotation.get("sentences")
    given = [
        one.get("raw") or one.get("sent") if isinstance(one, dict) else one
        for one in (sentences if isinstance(sentences, list) else ())
    ]
    return [text for text in given if isinstance(text, str)]


def _pack(name: str, folder: str, images: Any) -> CocoRows:
    lines, ends, present = bytearray(), array.array("q"), array.array("B")
    for image in images:
        lines += json.dumps(to_json(image)).encode()
        ends.append(len(lines))
        present.append(sum(1 << bit for bit, field in enumerate(_FIELDS) if image.get(field)))
    return CocoRows(
        name,
        folder,
        bytes(lines),
        np.frombuffer(ends, np.int64),
        np.frombuffer(present, np.uint8),
    )


_READ_LOCK = threading.Lock()


@functools.lru_cache(maxsize=8)
def _read_once(paths: tuple[str, ...], folder: str, states: tuple) -> CocoRows:
    del states  # only for the cache
    return read_coco(paths, folder)


@checked
@dataclasses.dataclass(frozen=True)
class CocoData(TableDataSet):
    """JSON files in the format of COCO, and the folder of their images.

    Attributes:
      annotations: a path, a list of files about the same images (captions and instances), or a dict
        from split to either; "train" is the split where there is no dict.
      image_folder: of all images, or a dict from split to folder.
      data_dir: the folder that all paths are relative to.
    """

    annotations: Files
    image_folder: Mapping[options.Name, options.Path] | options.Path
    data_dir: options.Folder = ""

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits."""
        return splits_of(self.annotations)

    def rows(self, split: str) -> Rows:
        """Parses the files of a split, once per process."""
        paths = find_files("CocoData", self.annotations, split, self.data_dir)
        given = self.image_folder
        if not isinstance(given, str):
            if split not in given:
                raise ValueError(
                    f"CocoData.image_folder has no split {split!r}: name the folder of its images."
                )
            given = given[split]
        states = tuple((os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths)
        with _READ_LOCK:
            return _read_once(paths, os.path.join(self.data_dir, given), states)

    def object_names(self) -> tuple[str, ...]:
        """Returns the names of the categories that objects of the train split have."""
        rows = self.rows("train")
        found = {
            name
            for number in range(len(rows))
            for name in rows.row(number).get("object_labels") or ()
        }
        return tuple(sorted(found))
