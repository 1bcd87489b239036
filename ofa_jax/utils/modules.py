"""Finds and imports the modules that a user names."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from ofa_jax.utils import renamed

_PACKAGE = "ofa_jax"


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
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its package does not exist; or it is not a package
        return False
