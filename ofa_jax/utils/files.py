"""Atomic writes: a file appears under its name when it is complete, or not at all."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath


@contextlib.contextmanager
def atomic_path(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path in the folder of `path`, which is renamed to `path` at the end.

    An old file stays as it is until then. If the block raises, the temporary file is deleted.

    Example:
      with atomic_path("model.pt") as temporary, temporary.open("wb") as file:
        file.write(content)

    Args:
      path: the file to write, on a disk or in an object store.
    """
    path = epath.Path(path)
    temporary = path.parent / f"{path.name}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically; line breaks are written as they are."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file atomically, with an indent of two and a line break at the end."""
    write_text(path, json.dumps(value, indent=2) + "\n")
