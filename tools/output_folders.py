"""Folders that commands write: created, replaced, and complete or absent."""

import os
import pathlib
import re

from ofa_jax.utils.output_folders import complete_or_absent, own_name, remove_stale

__all__ = [
    "complete_or_absent",
    "create",
    "own_name",
    "put_in_place",
    "refuse_foreign",
    "remove_stale",
]

# What pathlib makes of "gs://bucket/folder" begins with it.
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")


def create(folder: pathlib.Path, option: str) -> None:
    """Creates the folder that an option names, unless it exists.

    Raises:
      OSError: it cannot be created or written to, or is not on a disk.
    """
    if _SCHEME.fullmatch(folder.parts[0] if folder.parts else ""):
        raise OSError(
            f"{folder} is in an object store, and files are written to disks only: choose another "
            f"{option}, on a disk or a mount."
        )
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
