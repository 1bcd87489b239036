"""Locks a folder, so that two processes never write to it at the same time."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from ofa_jax.utils.files import is_local

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LockedError", "directory_lock", "waiting_lock"]


class LockedError(OSError):
    """Another process works in the folder."""


@contextlib.contextmanager
def directory_lock(directory: epath.PathLike, option: str, shared: bool = False) -> Iterator[None]:
    """Holds a folder's lock in the block.

    The lock is on the folder itself (`flock`): no file is written, and the system releases it when
    the process ends in any way. Folders in an object store, and file systems without locks, are not
    locked.

    Args:
      directory: an existing folder.
      option: the option that names it, e.g. "MODEL_DIR", for the error.
      shared: whether other processes may hold it too, if theirs is shared as well.

    Raises:
      LockedError: another process holds the lock.
    """
    if fcntl is None or not is_local(directory):
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(descriptor, directory, option, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def waiting_lock(directory: epath.PathLike, option: str, seconds: float = 0.2) -> Iterator[None]:
    """Holds a folder's lock in the block, and waits for it before, as long as that takes.

    Args:
      directory: an existing folder.
      option: the option that names it.
      seconds: time between two tries.
    """
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(directory_lock(directory, option))
                break
            except LockedError:
                time.sleep(seconds)
        yield


def _lock(descriptor: int, directory: epath.PathLike, option: str, mode: int) -> None:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise LockedError(
                errno.EWOULDBLOCK,
                f"Another process is writing to {directory}: wait until it has ended, or choose "
                f"another {option}",
            ) from None
        logging.warning("%s cannot be locked (%s): start one process in it only.", directory, error)
