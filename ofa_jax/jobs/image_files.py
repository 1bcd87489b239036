"""Records of image files: in a folder, and in the tars of WebDataset."""

import bisect
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any

from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.files import open_regular

__all__ = ["FolderRecords", "TarRecords"]

NO_IMAGE = declare(
    "sample without an image",
    Treatment.SKIPPED,
    "A sample of a WebDataset tar has no file that ends in .jpg, .jpeg, .png, .webp, .gif or .bmp.",
    __name__,
)

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_CAPTIONS = (".txt", ".caption")


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """A RecordSource over the image files of a folder and its subfolders, by name.

    `a/b.txt` beside `a/b.jpg` is the caption of it; the id is `a/b.jpg`.

    Attributes:
      directory: the folder.
    """

    directory: str

    def __getstate__(self) -> dict[str, str]:
        return {"directory": self.directory}

    @functools.cached_property
    def _names(self) -> list[str]:
        """The files, relative to the folder.

        Raises:
          ValueError: there are none.
        """
        names = []
        for folder, folders, files in os.walk(self.directory):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            names += [
                os.path.relpath(os.path.join(folder, name), self.directory)
                for name in files
                if name.lower().endswith(_IMAGES) and not name.startswith(".")
            ]
        if not names:
            raise ValueError(
                f"{self.directory} has no images ({', '.join(_IMAGES)}): check the path."
            )
        return sorted(names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        path = pathlib.Path(self.directory) / self._names[index]
        record: dict[str, Any] = {"id": self._names[index], "image": _read(path)}
        for ending in _CAPTIONS:
            beside = path.with_suffix(ending)
            if beside.is_file():
                record["captions"] = [_read(beside).decode("utf-8", "replace").strip()]
                break
        return record

    def location(self, index: int) -> str:
        """Returns the path of an image."""
        return os.path.join(self.directory, self._names[index])

    def identity(self) -> dict[str, Any]:
        """Returns the folder, and a checksum of the names and sizes of its images."""
        value = 0
        for name in self._names:
            size = os.path.getsize(os.path.join(self.directory, name))
            value = zlib.crc32(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"), value)
        return {"folder": os.path.abspath(self.directory), "names": f"{value:08x}"}


def _read(path: pathlib.Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise InvalidRecordError(f"{path} cannot be read ({error.strerror})") from error


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file within a tar."""

    ending: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class TarRecords:
    """A RecordSource over WebDataset tars: files whose names are alike up to the first dot.

    Attributes:
      paths: uncompressed tars, in order.
    """

    paths: tuple[str, ...]

    def __getstate__(self) -> dict[str, Any]:
        # Workers do not read the headers of all tars again.
        return {"paths": self.paths, "_ends": self._ends}

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(_index(path)) for path in self.paths))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[str, str, Sequence[_Member]]:
        """Returns the tar of a sample, its key and its files."""
        number = bisect.bisect_right(self._ends, index)
        path = self.paths[number]
        samples = _index(path)
        key, members = samples[index - self._ends[number] + len(samples)]
        return path, key, members

    def __getitem__(self, index: int) -> Record:
        path, key, members = self._find(index)
        record: dict[str, Any] = {"id": key}
        for member in members:
            ending = "." + member.ending.rpartition(".")[2].lower()
            if ending in _IMAGES and "image" not in record:
                record["image"] = _slice(path, member)
            elif ending in _CAPTIONS and "captions" not in record:
                record["captions"] = [_slice(path, member).decode("utf-8", "replace").strip()]
            elif ending == ".json":
                _add_json(record, _slice(path, member))
        if "image" not in record:
            raise InvalidRecordError(f"the sample {key} has no image", NO_IMAGE)
        return record

    def location(self, index: int) -> str:
        """Returns the tar and the key of a sample."""
        path, key, _ = self._find(index)
        return f"{path}, sample {key}"


def _add_json(record: dict[str, Any], content: bytes) -> None:
    """Adds the caption that a sample's JSON has, if it has one."""
    try:
        fields = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return
    caption = fields.get("caption") if isinstance(fields, dict) else None
    if isinstance(caption, str):
        record.setdefault("captions", [caption])


@functools.lru_cache(maxsize=8)
def _index(path: str) -> list[tuple[str, tuple[_Member, ...]]]:
    """Reads the headers of a tar: key -> files, in the order of the tar.

    Raises:
      ValueError: it is no tar, is damaged, or has no files.
    """
    found: dict[str, list[_Member]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if member.isfile() and not name.startswith("."):
                    stem, _, ending = name.partition(".")
                    key = f"{folder}/{stem}".removeprefix("./").lstrip("/")
                    found.setdefault(key, []).append(
                        _Member(ending, member.offset_data, member.size)
                    )
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is not an uncompressed tar, or damaged ({error}): copy or unpack it again."
        ) from error
    if not found:
        raise ValueError(f"{path} has no files: check the path.")
    return [(key, tuple(members)) for key, members in found.items()]


def _slice(path: str, member: _Member) -> bytes:
    """Reads a file of a tar. Raises InvalidRecordError if the tar ends before it."""
    with open_regular(path) as file:
        file.seek(member.offset)
        content = file.read(member.size)
    if len(content) < member.size:
        raise InvalidRecordError(f"{path} ends within its file: it is cut off")
    return content
