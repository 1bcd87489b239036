"""Finds and imports the modules that a user names.

Importing a module executes it, so a file may name only modules that the user put within reach:
those of this project, those in the folders of PYTHONPATH, and those that the command line names.
"""

import importlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import Any

from ofa_jax.utils import renamed

_PACKAGE = "ofa_jax"
_OWN_PACKAGES = (_PACKAGE, "tasks")


def import_modules(modules: str | Sequence[str] | None) -> None:
    """Imports what MIXTURE_OR_TASK_MODULE names: one module, several, or none.

    Raises:
      ValueError: one cannot be imported.
    """
    modules = modules or ()
    for module in (modules,) if isinstance(modules, str) else modules:
        if (current := renamed.current_module(module)) != module:
            renamed.warn(renamed.rename_sentence(module, current, ["MIXTURE_OR_TASK_MODULE"]))
        try:
            importlib.import_module(find_module(module))
        except ModuleNotFoundError as error:
            raise ValueError(
                f"MIXTURE_OR_TASK_MODULE is {module!r}, which cannot be imported ({error}): is its "
                "folder on PYTHONPATH?"
            ) from error


def import_task_modules(modules: str | Sequence[str] | None, settings: Any = None) -> None:
    """Imports the modules that register a run's tasks.

    Args:
      modules: MIXTURE_OR_TASK_MODULE: one, several or none.
      settings: of the run, whose `task_modules` are imported first: a `config.gin` from before
        MIXTURE_OR_TASK_MODULE had to name them does not.

    Raises:
      ValueError: one cannot be imported.
    """
    import_modules(getattr(settings, "task_modules", None))
    import_modules(modules)


def may_import(name: str, allowed: Sequence[str] = ()) -> bool:
    """Returns whether a module that a file names may be imported; imports nothing.

    Args:
      name: of the module.
      allowed: modules that the user named on the command line, and all below them.
    """
    if any(name == module or name.startswith(f"{module}.") for module in allowed):
        return True
    found = find_module(name)
    root = found.partition(".")[0]
    if _is_own(root):
        return True
    folders = _folders_of(root)
    named = os.environ.get("PYTHONPATH", "")
    reach = {os.path.realpath(path or ".") for path in named.split(os.pathsep)} if named else set()
    # A module that does not exist is reported when it is imported.
    return not folders or bool(folders & reach)


def find_module(name: str) -> str:
    """Returns the name under which a module can be imported.

    From a checkout the project's modules of tasks are `tasks.NAME`; a wheel has them as
    `ofa_jax.tasks.NAME`. A module that was renamed is found under its new name.

    Args:
      name: as a user wrote it.

    Returns:
      `name` itself if nothing is found: importing it says what is wrong.
    """
    current = renamed.current_module(name)
    for candidate in (name, current, f"{_PACKAGE}.{current}"):
        if _exists(candidate):
            return candidate
    return name


def _exists(module: str) -> bool:
    """Returns whether there is a module, without importing the packages that it is in."""
    root, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(root)
        for count in range(len(parts)):
            if spec is None or spec.submodule_search_locations is None:
                return False
            name = ".".join([root, *parts[: count + 1]])
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, ValueError):
        return False
    return spec is not None


def _is_own(root: str) -> bool:
    """Returns whether a package is one of this project's."""
    if root not in _OWN_PACKAGES:
        return False
    return os.path.realpath(pathlib.Path(__file__).parents[2]) in _folders_of(root)


def _folders_of(root: str) -> set[str]:
    """Returns the folders that a package or module without dots is in; none if there is none."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return set()
    if spec is None:
        return set()
    places = list(spec.submodule_search_locations or ()) or [spec.origin or root]
    return {os.path.dirname(os.path.realpath(place)) for place in places}
