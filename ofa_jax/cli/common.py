"""Parses the command line that all entry points share, and configures gin with it.

    python -m ofa_jax.train --gin_file=FILE [--gin_file=FILE ...] [--gin_search_paths=DIR,DIR]
                            [--gin_import=MODULE ...] [--gin.NAME=value ...]

The flags are those of t5x. Where several hosts run the command, it also takes the flags of
`ofa_jax.utils.distributed`.
"""

import contextlib
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gin

from ofa_jax.cli import gin_files, gin_lint, gin_registry, gin_unread
from ofa_jax.cli.compilation_cache import cache_compiled_programs
from ofa_jax.cli.errors import ConfigError
from ofa_jax.cli.flags import ArgumentParser as ArgumentParser
from ofa_jax.cli.flags import parse_flags
from ofa_jax.data import pretraining_settings
from ofa_jax.utils import distributed, platforms

__all__ = ["ArgumentParser", "parse_arguments"]

_GIN_PREFIX = "--gin."


def parse_arguments(
    program: str,
    description: str,
    arguments: Sequence[str],
    not_needed: Mapping[str, Any] | None = None,
    may_stay_open: Collection[str] = (),
) -> list[str]:
    """Parses the command line, connects to the other hosts if there are any, and configures gin.

    JAX must not have been used before the call.

    Args:
      program: the command, for the usage line.
      description: for `--help`, as it is.
      arguments: the command line without the program; `gin_registry.register` was called.
      not_needed: macro that this program does not read, and that may therefore be left required ->
        its value.
      may_stay_open: macros that may be left required; they become None.

    Returns:
      The gin files that were read, as given (for the log).

    Raises:
      ConfigError: see `gin_lint.check`; also an unknown flag, or no gin file at all.
    """
    values = not_needed or {}
    bindings, rest = _split_bindings(arguments)
    options = parse_flags(program, description, rest)
    search_paths = [*_search_paths(options.gin_search_paths), "."]
    files = [gin_files.find_file(name, search_paths) for name in options.gin_file]
    renamings = [
        renaming
        for name, path in zip(options.gin_file, files, strict=True)
        for renaming in gin_files.file_renamings(name, path, gin_files.COMMAND_LINE)
    ]
    left_open = gin_lint.check(
        files,
        bindings,
        search_paths,
        gin.get_configurable,
        gin_registry.names,
        {*values, *may_stay_open},
        renamings,
        allowed=options.gin_import,
    )
    given = tuple(bindings)
    bindings += [f"{name} = None" for name in left_open if name in may_stay_open]
    bindings += [f"{name} = {value!r}" for name, value in values.items()]
    cache_compiled_programs()
    platforms.skip_missing_tpu()
    distributed.initialize(distributed.from_arguments(options))
    for path in files:
        gin_files.parse(path, search_paths, allowed=options.gin_import)
    gin_unread.remember(given)
    gin.parse_config([gin_files.translate(line, gin_files.COMMAND_LINE).text for line in bindings])
    gin.finalize()
    with contextlib.suppress(ValueError):  # a command that registers no data sets
        pretraining_settings.set_scenes_factory(gin.get_configurable("Scenes"))
    return options.gin_file


def _split_bindings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the `--gin.NAME=value` arguments as gin statements, and the other arguments."""
    bindings, rest = [], []
    for argument in arguments:
        if not argument.startswith(_GIN_PREFIX):
            rest.append(argument)
            continue
        name, separator, value = argument.removeprefix(_GIN_PREFIX).partition("=")
        if not separator:
            raise ConfigError(
                f"{argument} has no value: write {_GIN_PREFIX}{name}=VALUE, without a space."
            )
        bindings.append(f"{name} = {value}")
    return bindings, rest


def _search_paths(flag: str) -> list[str]:
    """Returns the folders that --gin_search_paths names; raises ConfigError if one is missing."""
    paths = [path for path in flag.split(",") if path]
    for path in paths:
        if not pathlib.Path(path).is_dir():
            raise ConfigError(f"--gin_search_paths names {path}, which is not a folder.")
    return paths
