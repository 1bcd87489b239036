"""Compares folders before and after a command that should change nothing."""

import os
import pathlib
import stat


def snapshot(folder) -> dict[str, tuple]:
    """Returns path -> (kind and permissions, time of the last change, content) of everything."""
    folder = pathlib.Path(folder)
    found = {}
    for path in [folder, *folder.rglob("*")] if os.path.lexists(folder) else []:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found
