"""JSON files that a command writes for itself and reads again, and that must never end it.

A damaged file is renamed to `<name>.damaged`, which is logged, and then made anew. A file that
cannot be written (a full disk) is logged, and written again with the next result.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from absl import logging
from etils import epath

from ofa_jax.utils import files
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.json_values import to_json
from ofa_jax.utils.text_files import DamagedFileError, read_json

__all__ = ["read_or_set_aside", "read_own_json", "write_own_json"]

T = TypeVar("T")
DAMAGED = "damaged"
"""Ending of the name under which a damaged file is kept."""

DAMAGED_FILE = declare(
    "file of the run is damaged",
    Treatment.RECOVERED,
    "A file that training writes for itself and for other commands (`model.json`, "
    "`validation.json`, `validations.json`, `baselines.json`, those in `interface`) cannot be "
    "read. It is kept as FILE.damaged and written anew.",
    __name__,
)


def read_or_set_aside(
    path: epath.PathLike, read: Callable[[], T], log: Callable[[str], None] = logging.warning
) -> T | None:
    """Returns what a file holds; None if it is missing, or damaged and therefore set aside.

    Args:
      path: of the file.
      read: reads it; it raises OSError or ValueError, with a sentence, if the file is damaged.
      log: prints a message; the first host renames the file.
    """
    path = epath.Path(path)
    try:
        return read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if jax.process_index() == 0:
            _set_aside(path, error, log)
        return None


def _set_aside(path: epath.Path, error: Exception, log: Callable[[str], None]) -> None:
    """Renames a damaged file; one that cannot be renamed stays, and is overwritten later."""
    kept = path.parent / f"{path.name}.{DAMAGED}"
    sentence = f"{str(error).rstrip('.')}: it is made anew"
    try:
        path.replace(kept)
    except OSError:
        log(f"{sentence}.")
    else:
        log(f"{sentence}, and the damaged file is kept as {kept.name}.")


def read_own_json(
    path: epath.PathLike,
    check: Callable[[Any], bool],
    log: Callable[[str], None] = logging.warning,
) -> Any | None:
    """Returns the value of a JSON file; None if it is missing or damaged, see `read_or_set_aside`.

    Args:
      path: of the file.
      check: returns whether a value has the shape that the file should have.
      log: prints a message.
    """

    def read() -> Any:
        value = read_json(path)
        if not check(value):
            raise DamagedFileError(f"{path} does not hold what it should.")
        return value

    return read_or_set_aside(path, read, log)


def write_own_json(
    path: epath.PathLike, value: Any, log: Callable[[str], None] = logging.warning
) -> None:
    """Writes a JSON file atomically on the first host; a failure is logged.

    Args:
      path: of the file.
      value: JSON, see `to_json`; numbers that are not finite are written as null.
      log: prints a message.
    """
    if jax.process_index() > 0:
        return
    try:
        files.write_json(path, to_json(value))
    except OSError as error:
        log(f"{path} cannot be written ({error}); it is written again with the next result.")
