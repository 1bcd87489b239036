"""The files of results that commands write and continue: JSON, a page made from it, a plot."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ofa_jax.utils import files, text_files

__all__ = ["read", "write"]

T = TypeVar("T")


def read(path: pathlib.Path, name: str, check: Callable[[Any], object], empty: T) -> T:
    """Reads a command's results; returns `empty` if there is no file.

    Args:
      path: of the JSON file.
      name: what the file should have, for the error: "the results of Scenes".
      check: goes through what was read, and fails if it is something else.
      empty: stands for no results.

    Raises:
      DamagedFileError: the file is torn, or `check` fails.
    """
    if not path.exists():
        return empty
    results: T = text_files.read_json(path)
    try:
        check(results)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise text_files.DamagedFileError(
            f"{path} does not have {name} ({type(error).__name__}: {error}): move it away, or "
            "choose another --results_dir."
        ) from error
    return results


def write(
    directory: pathlib.Path,
    name: str,
    results: Mapping[str, Any] | Sequence[Any],
    page: str,
    plot: str | None = None,
) -> None:
    """Writes a command's results, each file atomically; the folder is created.

    Args:
      directory: of all results.
      name: of the command's files.
      results: the content of NAME.json.
      page: the content of NAME.md.
      plot: the content of NAME.svg; None to leave it as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files.write_json(directory / f"{name}.json", results)
    if plot is not None:
        files.write_text(directory / f"{name}.svg", plot)
    files.write_text(directory / f"{name}.md", page)
