"""Folders that appear under their name only when they are complete.

A folder is written beside its target, under a temporary name that ends with the process's id, and
renamed at the end.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


def remove_stale(folder: pathlib.Path, prefix: str) -> None:
    """Removes `<prefix><process id>` folders whose process has died."""
    for path in folder.glob(f"{prefix}*"):
        process = path.name.rpartition("-")[2]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def put_in_place(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames source to target, replacing an existing target."""
    if target.exists():
        old = source.parent / "replaced"
        target.rename(old)
    source.rename(target)


@contextlib.contextmanager
def complete_or_absent(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder beside `target`, which becomes `target` at the end, or is removed.

    Args:
      target: the folder to write; it does not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-"
    remove_stale(target.parent, prefix)
    folder = target.parent / f"{prefix}{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
