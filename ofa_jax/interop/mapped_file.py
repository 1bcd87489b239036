"""Opens checkpoint files by mapping them: nothing is read before it is used."""

import contextlib
import dataclasses
import mmap
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from ofa_jax.utils import wrong_files
from ofa_jax.utils.files import open_regular
from ofa_jax.utils.text_files import DamagedFileError


@dataclasses.dataclass(frozen=True)
class MappedFile:
    """An opened file.

    Attributes:
      file: open as long as the context of `open_mapped`.
      head: its first bytes, for `wrong_files.describe_bytes`.
      content: all of it; views of it stay valid after the file is closed.
    """

    file: BinaryIO
    head: bytes
    content: mmap.mmap


@contextlib.contextmanager
def open_mapped(path: pathlib.Path) -> Iterator[MappedFile]:
    """Opens a checkpoint file.

    Args:
      path: of a regular file.

    Raises:
      FileNotFoundError: it does not exist.
      OSError: it is something else than a regular file.
      DamagedFileError: it is empty, a pointer of Git LFS, or a web page.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    with open_regular(path) as file:
        head = file.read(wrong_files.HEAD_BYTES)
        if problem := wrong_files.describe_placeholder(head):
            raise DamagedFileError(f"{path} {problem}.")
        yield MappedFile(file, head, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
