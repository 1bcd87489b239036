"""Records of image files: in a folder, and in the tars of WebDataset."""

import dataclasses
import functools
import os
import pathlib
import zlib
from typing import Any

from ofa_jax.data.sources.tables import JoinedRows
from ofa_jax.data.sources.webdataset import TarRows
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.files import open_regular

__all__ = ["FolderRecords", "TarRecords"]

NO_IMAGE = declare(
    "sample without an image",
    Treatment.SKIPPED,
    "A sample of a WebDataset tar has no image file.",
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
class TarRecords:
    """A RecordSource over WebDataset tars: an image and its captions for each sample.

    Attributes:
      paths: uncompressed tars, in order.
      index_dir: the folder of the indices; None for that of the tars.
    """

    paths: tuple[str, ...]
    index_dir: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "index_dir": self.index_dir}

    @functools.cached_property
    def _rows(self) -> JoinedRows:
        return JoinedRows(tuple(TarRows(path, self.index_dir) for path in self.paths))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._rows.row(index, ("id", "image", "captions", "caption"))
        if not isinstance(row.get("image"), bytes):
            raise InvalidRecordError("the sample has no image", NO_IMAGE)
        captions = row.get("captions", row.get("caption"))
        record = {"id": row["id"], "image": row["image"]}
        if captions:
            record["captions"] = [captions] if isinstance(captions, str) else list(captions)
        return record

    def location(self, index: int) -> str:
        """Returns the tar and the key of a sample."""
        return self._rows.location(index)
