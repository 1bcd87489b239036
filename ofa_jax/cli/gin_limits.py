"""What gin files may not do: include themselves, or import modules that nobody allowed."""

import pathlib
from collections.abc import Sequence

from gin import config_parser

from ofa_jax.cli.errors import ConfigError
from ofa_jax.cli.gin_parser import place_of
from ofa_jax.utils.modules import may_import
from ofa_jax.utils.renamed import COMMAND_LINE

__all__ = ["check_import", "enter", "unreachable"]

_MAX_DEPTH = 50


def enter(path: pathlib.Path, trail: Sequence[pathlib.Path], where: str) -> list[pathlib.Path]:
    """Returns the files that include each other, down to the one that is entered.

    Args:
      path: the file that is included.
      trail: the files around it, from the outermost.
      where: the place of the `include`.

    Raises:
      ConfigError: the file includes itself, directly or through others, or there are too many.
    """
    if path in trail:
        chain = " -> ".join(one.name for one in (*trail[trail.index(path) :], path))
        raise ConfigError(f"{where}: {path.name} includes itself ({chain}): remove an include.")
    if len(trail) >= _MAX_DEPTH:
        raise ConfigError(f"{where}: files include each other more than {_MAX_DEPTH} levels deep.")
    return [*trail, path]


def check_import(statement: config_parser.ImportStatement, allowed: Sequence[str]) -> None:
    """Raises ConfigError unless an `import` may be executed.

    Args:
      statement: of a gin file.
      allowed: modules that the command line names, see `modules.may_import`.
    """
    location, module = statement.location, statement.module
    where = place_of(location.filename or COMMAND_LINE, location.line_num)
    if module.startswith("__gin__"):
        raise ConfigError(
            f"{where}: `from __gin__ import {module.rpartition('.')[2]}` is not supported, because "
            "it would let the file call any function."
        )
    if not may_import(module, allowed):
        raise ConfigError(unreachable(where, module))


def unreachable(where: str, module: str) -> str:
    """Returns the sentence on a module that a file names and that may not be imported."""
    return (
        f"{where}: the module {module} is not imported, because importing executes it: allow it "
        f"with --gin_import={module}, or name its folder in PYTHONPATH. Unasked, an import "
        "would let the file call any function."
    )
