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


def create(folder: pathlib.Path, option: str) -> None:
    """Creates the folder that an option names, unless it exists.

    Raises:
      OSError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be created ({error.strerror}): choose another {option}."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"{folder} cannot be written to: choose another {option}.")


def refuse_foreign(target: pathlib.Path, marker: str, option: str) -> None:
    """Raises ValueError if something is at the target that this command did not write.

    Args:
      target: the folder that is to be written, or replaced.
      marker: the file that the command writes into it last.
      option: the option that decides the target.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not (target / marker).is_file():
        raise ValueError(
            f"{target} exists but was not written by this command (it has no {marker}): choose "
            f"another {option}, or move it away."
        )


def put_in_place(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames source to target, replacing an existing target.

    Raises:
      OSError: it cannot be renamed; an old target stays.
    """
    old = source.parent / "replaced"
    replaced = target.exists()
    if replaced:
        target.rename(old)
    try:
        source.rename(target)
    except OSError as error:
        if replaced:
            old.rename(target)
        raise OSError(
            f"{target} cannot be written ({error.strerror}): perhaps another process has written "
            "it meanwhile."
        ) from error


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
