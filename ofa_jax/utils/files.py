"""Safe access to files: atomic writes, and reads of regular files alone.

A file appears under its name when it is complete, or not at all. What is not a regular file (a
fifo, a device, a socket) is never read, because that could block for ever.
"""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import socket
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from etils import epath

_numbers = itertools.count()


@contextlib.contextmanager
def atomic_path(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path in the folder of `path`, which is renamed to `path` at the end.

    An old file stays as it is until then. If the block raises, the temporary file is deleted. Its
    name is this process's own, so that two processes never write to one file, and it begins with a
    dot and ends in `.tmp`.

    Example:
      with atomic_path("model.pt") as temporary, temporary.open("wb") as file:
        file.write(content)

    Args:
      path: the file to write, on a disk or in an object store.
    """
    path = epath.Path(path)
    own = f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
    temporary = path.parent / f".{path.name}.{own}.tmp"
    try:
        yield temporary
        _synchronise(temporary)
        temporary.replace(path)
    except BaseException:
        # On a full or vanished disk, this error must not replace the first one.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _synchronise(path: epath.Path) -> None:
    """Waits until the content of a local file is on the disk: renaming alone does not."""
    if not is_local(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_local(path: epath.PathLike) -> bool:
    """Returns whether a path is in a file system of this machine, not in an object store."""
    return "://" not in os.fspath(path)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically; line breaks are written as they are."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file atomically, with an indent of two and a line break at the end."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading, without ever blocking on another kind of file.

    Args:
      path: on a disk; symbolic links are followed.

    Raises:
      FileNotFoundError, PermissionError: it cannot be opened.
      OSError: it is a folder, a fifo, a device or a socket, or in /proc or /sys.
    """
    if "\0" in os.fspath(path):
        shown = repr(os.fspath(path)[:80])
        raise OSError(errno.EINVAL, f"{shown} is not a path: it has a NUL character")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"{path} is not a regular file but a {_kind(mode)}")
        # Files there are regular by name only: reading some blocks, or never ends.
        opened = pathlib.Path(f"/proc/self/fd/{descriptor}").resolve()
        if opened.parts[1:2] in (("proc",), ("sys",)):
            raise OSError(errno.EINVAL, f"{path} is not a regular file but one of the system's")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: epath.PathLike, max_bytes: int | None = None) -> bytes:
    """Reads a regular file.

    Args:
      path: on a disk or in an object store.
      max_bytes: the size from which it is refused before it is read; None for no limit.

    Raises:
      OSError: see `open_regular`; or it is larger than `max_bytes`.
    """
    if not is_local(path):
        return epath.Path(path).read_bytes()
    with open_regular(os.fspath(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise OSError(
                errno.EFBIG, f"{path} has {size:,} bytes; the limit is {max_bytes:,} bytes"
            )
        return file.read()


def _kind(mode: int) -> str:
    """Returns what a file that is not regular is."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
             stat.S_IFCHR: "device", stat.S_IFBLK: "device"}  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "special file")
