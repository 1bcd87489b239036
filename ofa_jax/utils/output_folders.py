"""Folders that appear under their name only when they are complete.

A folder is written beside its target, under a temporary name that ends with the host's name and the
process's id, and renamed at the end.
"""

import contextlib
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator

__all__ = ["complete_or_absent", "own_name", "remove_stale"]


def own_name(prefix: str) -> str:
    """Returns the temporary name of this process."""
    return f"{prefix}{socket.gethostname()}-{os.getpid()}"


def remove_stale(folder: pathlib.Path, prefix: str) -> None:
    """Removes temporary folders of this host whose process has died."""
    for path in folder.glob(f"{prefix}*"):
        host, _, process = path.name.removeprefix(prefix).rpartition("-")
        # Names without a host are of earlier versions. Another host's process may be alive.
        if host in ("", socket.gethostname()) and process.isdigit():
            if not _is_running(int(process)):
                shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def complete_or_absent(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder beside `target`, which becomes `target` at the end, or is removed.

    Args:
      target: the folder to write; it does not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-"
    remove_stale(target.parent, prefix)
    folder = target.parent / own_name(prefix)
    folder.mkdir()
    try:
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
