"""Reading the JSON files that commands keep in results/ and continue."""

import pathlib
from collections.abc import Callable
from typing import Any

from ofa_jax.utils import text_files

__all__ = ["read"]


def read(path: pathlib.Path, name: str, check: Callable[[Any], object]) -> Any:
    """Reads a command's results; returns None if there is no file.

    Args:
      path: of the JSON file.
      name: what the file should have, for the error: "the results of Scenes".
      check: goes through what was read, and fails if it is something else.

    Raises:
      DamagedFileError: the file is torn, or `check` fails.
    """
    if not path.exists():
        return None
    results = text_files.read_json(path)
    try:
        check(results)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise text_files.DamagedFileError(
            f"{path} does not have {name} ({type(error).__name__}: {error}): move it away, or "
            "choose another --results_dir."
        ) from error
    return results
