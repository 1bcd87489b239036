"""Files that are made from a user's file once, and kept beside it or in another folder."""

import contextlib
import errno
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from ofa_jax.utils.files import atomic_path

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Of errors that another folder avoids."""


def make_derived_file(
    path: str,
    index_dir: str | None,
    suffix: str,
    what: str,
    write: Callable[[epath.Path], None],
) -> str:
    """Makes a file from a user's file, unless that is done already; returns its path.

    The file made from an earlier state of the user's file is deleted, with what was made from it.

    Args:
      path: the user's file.
      index_dir: folder of the made file; that of `path` when None.
      suffix: of the name of the made file.
      what: the subject of a sentence about the made file, e.g. "The rows of pairs.parquet".
      write: writes the made file to a path.

    Raises:
      OSError: there is no such file, or the other one cannot be written.
    """
    target, versions = _derived_file(path, index_dir, suffix)
    if target.is_file():
        return str(target)
    with written_to(target.parent, what, path), atomic_path(target) as temporary:
        write(temporary)
    for old in target.parent.glob(f"{versions}{suffix}*"):
        if not old.name.startswith(target.name):
            old.unlink(missing_ok=True)
    return str(target)


class _DerivedFile(NamedTuple):
    """Where a made file is kept.

    Attributes:
      path: of the file.
      versions: a pattern for it and its earlier versions in the same folder, without their suffix.
    """

    path: pathlib.Path
    versions: str


def _derived_file(path: str, index_dir: str | None, suffix: str) -> _DerivedFile:
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
    return _DerivedFile(folder / f"{name}{version}{suffix}", f"{name}*")


@contextlib.contextmanager
def written_to(folder: pathlib.Path, what: str, source: str) -> Iterator[None]:
    """Makes a folder for a made file; an error of writing there becomes a sentence.

    Args:
      folder: that is written to within the block.
      what: the subject of the sentence, e.g. "The index of pairs.tar".
      source: the user's file, which is read; its own errors stay as they are.

    Raises:
      OSError: the folder cannot be written to, or has no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename == source:
            raise
        raise OSError(
            f"{what} cannot be written to {folder} ({error.strerror}): give a folder that can be "
            "written to as index_dir."
        ) from error
