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

from ofa_jax.data.sources.base import WrongDataOptionError
from ofa_jax.data.sources.field_table import BoxFormat, Row
from ofa_jax.data.sources.file_patterns import Files, find_files, splits_of
from ofa_jax.data.sources.json_lines import parse_line
from ofa_jax.data.sources.table_rows import Rows
from ofa_jax.data.sources.tables import TableDataSet
from ofa_jax.utils import options
from ofa_jax.utils.bad_input import Treatment, declare, note
from ofa_jax.utils.json_values import to_json
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.strict_json import MarkedObject
from ofa_jax.utils.text_files import DamagedFileError, read_json
from ofa_jax.utils.wrong_files import shorten

BAD_ANNOTATION = declare(
    "malformed annotation",
    Treatment.DROPPED,
    "An annotation of a COCO file is no object, belongs to no image of the file, or has neither a "
    "caption nor a box of a known category nor a question. Images without an id, and images "
    "and categories that share it with another one, are left out with their annotations; so is "
    "what has a field twice.",
    __name__,
)
_LISTS = {"images", "annotations", "categories"}
_TWICE = "have a field twice"
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


def read_coco(
    paths: Sequence[str], image_folder: str, class_names: Mapping[str, str] | None = None
) -> CocoRows:
    """Parses COCO files; annotations of several files of the same images are joined.

    Args:
      paths: of the files.
      image_folder: that the names of images are relative to.
      class_names: id -> name of the categories of files that have none.

    Raises:
      FileNotFoundError: there is no such file.
      WrongDataOptionError: the files are about different images.
      DamagedFileError: one is no JSON, or not in the format of COCO.
    """
    images: dict[str, dict[str, Any]] = {}
    dropped: collections.Counter[str] = collections.Counter()
    for path in paths:
        content = _read(path)
        own = _images(path, content["images"], dropped)
        for key, image in own.items():
            if (known := images.setdefault(key, image))["image"] != image["image"]:
                raise WrongDataOptionError(
                    f"The image {key} is {shorten(image['image'])} in {path}, and "
                    f"{shorten(known['image'])} in {paths[0]}: files of CocoData.annotations must "
                    "be about the same images; mix other ones by MixedData."
                )
        categories = _categories(path, content.get("categories"), dropped) or class_names or {}
        for annotation in content.get("annotations") or ():
            # An image is known by all files, but an annotation belongs to one of its own file.
            problem = _add(annotation, images, own, categories)
            if problem is not None:
                dropped[f"annotations of {path}: {problem}"] += 1
    for problem, count in dropped.items():
        note(BAD_ANNOTATION, f"{count:,} {problem}")
    if not images:
        raise DamagedFileError(f"{paths[0]} has no images that can be used.")
    return _pack(paths[0], image_folder, images.values())


def _read(path: str) -> dict[str, Any]:
    content = read_json(path, only_finite=False, mark_repeated=True)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DamagedFileError(
            f"{path} is not in the format of COCO: it must be an object with `images` and "
            "`annotations`."
        )
    if isinstance(content, MarkedObject) and (twice := set(content.repeated) & _LISTS):
        raise DamagedFileError(
            f"{path} is ambiguous: it has {shorten(min(twice))} twice: keep one of the two."
        )
    if not isinstance(content.get("annotations") or [], list):
        raise DamagedFileError(f"{path} is not in the format of COCO: `annotations` is no list.")
    return content


def _images(path: str, given: Sequence[Any], dropped: collections.Counter) -> dict[str, dict]:
    """Returns the images of a file by their ids, without those that have none or share one."""
    found: dict[str, dict[str, Any]] = {}
    shared: set[str] = set()
    for image in given:
        key = _key(image.get("id")) if isinstance(image, dict) else None
        if key is None:
            dropped[f"images of {path}: have no id"] += 1
            continue
        if isinstance(image, MarkedObject):
            dropped[f"images of {path}: {_TWICE}"] += 1
            continue
        name = image.get("file_name")
        if found.setdefault(key, {"id": key, "image": name})["image"] != name:
            shared.add(key)
    for key in shared:
        del found[key]
        dropped[f"images of {path}: share their id with another one"] += 1
    return found


def _key(value: Any) -> str | None:
    """Returns an id as a text: 7, 7.0 and "7" are the same; None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None


def _categories(path: str, given: Any, dropped: collections.Counter) -> dict[str, str]:
    """Returns id -> name of the categories; others, and those of two names, are left out."""
    found: dict[str, str] = {}
    shared: set[str] = set()
    for one in given if isinstance(given, list) else ():
        if isinstance(one, MarkedObject):
            dropped[f"categories of {path}: {_TWICE}"] += 1
        elif (
            isinstance(one, dict)
            and (key := _key(one.get("id"))) is not None
            and isinstance(name := one.get("name"), str)
            and found.setdefault(key, name) != name
        ):
            shared.add(key)
    for key in shared:
        del found[key]
        dropped[f"categories of {path}: share their id with another one"] += 1
    return found


def _add(
    annotation: Any,
    images: Mapping[str, dict],
    own: Mapping[str, dict],
    categories: Mapping[str, str],
) -> str | None:
    """Adds an annotation to its image; returns why it cannot be used, if so."""
    if not isinstance(annotation, dict):
        return "are no objects"
    sentences = annotation.get("sentences")
    parts = sentences if isinstance(sentences, list) else ()
    if any(isinstance(one, MarkedObject) for one in (annotation, *parts)):
        return _TWICE
    key = _key(annotation.get("image_id"))
    if key is None or key not in own:
        return "belong to no image of the file"
    image = images[key]
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
    box = annotation.get("bbox")
    if not _is_box(box):
        return None if used else "have neither a caption nor a box of four numbers"
    name = categories.get(_key(annotation.get("category_id")) or "")
    if name is not None:
        image.setdefault("object_labels", []).append(name)
        image.setdefault("object_boxes", []).append(box)
        used = True
    for phrase in _phrases(annotation):
        image.setdefault("phrases", []).append(phrase)
        image.setdefault("phrase_boxes", []).append(box)
        used = True
    return None if used else "have a box of an unknown category"


def _is_box(box: Any) -> bool:
    """Returns whether a value is four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(number) in (int, float) and abs(number) < 1e9 for number in box)
    )


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
def _read_once(
    paths: tuple[str, ...], folder: str, class_names: tuple[str, ...], states: tuple
) -> CocoRows:
    del states  # only for the cache
    return read_coco(paths, folder, {str(key): name for key, name in enumerate(class_names)})


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
    box_format: BoxFormat = dataclasses.field(default="xywh", kw_only=True)

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
                raise WrongDataOptionError(
                    f"CocoData.image_folder has no split {split!r}: name the folder of its images."
                )
            given = given[split]
        folder = os.path.join(self.data_dir, given)
        states = tuple((os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths)
        with _READ_LOCK:
            names = tuple(self.class_names or ())
            return _read_once(paths, folder, names, states)

    def object_names(self) -> tuple[str, ...]:
        """Returns the names of the categories that objects of the train split have."""
        rows = self.rows("train")
        found = {
            name
            for number in range(len(rows))
            for name in rows.row(number).get("object_labels") or ()
        }
        return tuple(sorted(found))
