"""Names of files that are made from a user's file once, and kept beside it or in another folder."""

import os
import pathlib
import zlib
from typing import NamedTuple


class DerivedFile(NamedTuple):
    """Where a made file is kept.

    Attributes:
      path: of the file.
      versions: a pattern for it and its earlier versions in the same folder, without their suffix.
    """

    path: pathlib.Path
    versions: str


def derived_file(path: str, index_dir: str | None, suffix: str) -> DerivedFile:
    """Returns where a file made from another one is kept; a changed file gets a new name.

    Args:
      path: the user's file.
      index_dir: folder of the made files; that of `path` when None.
      suffix: of the name.

    Raises:
      OSError: there is no such file.
    """
    status = os.stat(path)
    source = pathlib.Path(path)
    checksum = zlib.crc32(str(source.absolute()).encode())
    name = f".{source.name}.{checksum:08x}-"
    folder = source.parent if index_dir is None else pathlib.Path(index_dir)
    version = f"{status.st_size:x}-{status.st_mtime_ns:x}"
    return DerivedFile(folder / f"{name}{version}{suffix}", f"{name}*")
