"""The command line that all entry points share, in t5x's manner.

    python -m ofa_jax.train --gin_file=FILE [--gin_file=FILE ...] [--gin_search_paths=DIR,DIR]
                            [--gin.NAME=value ...]

and, where several hosts run it, the flags of `ofa_jax.utils.distributed`.

A mistake of the user's ends with one sentence on standard error and exit code 2, before anything is
compiled. Any other exception is a bug of ours and keeps its traceback.
"""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import gin
import jax

from ofa_jax.cli import gin_files, gin_lint, gin_registry
from ofa_jax.utils import distributed, platforms
from ofa_jax.utils.modules import import_task_modules as import_task_modules
from ofa_jax.utils.suggestions import nearest

FAILURE, USAGE_ERROR = 1, 2
"""Exit codes; a supervisor starts a run again after a failure, not after a user's mistake."""
# As launch/environment.sh has it. The small programs of a start are many: they are kept too.
_COMPILATION_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": os.path.expanduser("~/.cache/ofa_jax/jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}


class _Parser(argparse.ArgumentParser):
    """argparse, with the nearest right flag in the message."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise gin_lint.ConfigError(message[0].upper() + message[1:] + ".")


def parse_arguments(
    program: str,
    description: str,
    arguments: Sequence[str],
    not_needed: Mapping[str, Any] | None = None,
    may_stay_open: Collection[str] = (),
) -> list[str]:
    """Reads the command line, meets the other hosts if there are any, and configures gin.

    Before the call JAX must not have been used for anything.

    Args:
      program: how the command is called, for the usage line.
      description: one paragraph for `--help`.
      arguments: the command line without the program; `gin_registry.register` was called.
      not_needed: macros that this program does not read, so that they may be left required -> what
        to set them to.
      may_stay_open: macros that may be left required; they are None then.

    Returns:
      The gin files that were read, as given (for the log).

    Raises:
      gin_lint.ConfigError: see there; also an unknown flag, or no gin file at all.
    """
    parser = _Parser(prog=program, description=description, allow_abbrev=False, epilog=_EPILOG)
    parser.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="read in the order given"
    )
    parser.add_argument(
        "--gin_search_paths",
        default="",
        metavar="DIR,DIR",
        help="where gin files are looked for, before the current folder and the project's own",
    )
    distributed.add_arguments(parser)
    bindings, rest = [], []
    for argument in arguments:
        if argument.startswith("--gin."):
            name, separator, value = argument.removeprefix("--gin.").partition("=")
            if not separator:
                raise gin_lint.ConfigError(
                    f"{argument} has no value: write --gin.{name}=VALUE, without a space."
                )
            bindings.append(f"{name} = {value}")
        else:
            rest.append(argument)
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        flags = ["--gin_file", "--gin_search_paths", "--gin.", "--help", *distributed.FLAGS]
        flag = unknown[0].partition("=")[0]
        raise gin_lint.ConfigError(
            f"There is no flag {flag}.{nearest(flag, flags)} See `{program} --help`."
        )
    if not options.gin_file:
        raise gin_lint.ConfigError(
            f"No gin file given: add --gin_file=FILE, as in `{program} "
            "--gin_file=runs/pretrain_scenes.gin`."
        )
    search_paths = [path for path in options.gin_search_paths.split(",") if path]
    for path in search_paths:
        if not pathlib.Path(path).is_dir():
            raise gin_lint.ConfigError(f"--gin_search_paths names {path}, which is no folder.")
    search_paths.append(".")

    files = [gin_files.find_file(name, search_paths) for name in options.gin_file]
    for name, path in zip(options.gin_file, files, strict=True):
        gin_lint.warn_of_renamings(gin_files.file_renamings(name, path, gin_files.COMMAND_LINE))
    left_open = gin_lint.check(
        files,
        bindings,
        search_paths,
        gin.get_configurable,
        gin_registry.names,
        {*(not_needed or {}), *may_stay_open},
    )
    bindings += [f"{name} = None" for name in left_open if name in may_stay_open]
    bindings += [f"{name} = {value!r}" for name, value in (not_needed or {}).items()]
    keep_compiled_programs()
    platforms.skip_missing_tpu()
    distributed.initialize(distributed.from_arguments(options))
    for path in files:
        gin_files.parse(path, search_paths)
    gin.parse_config([gin_files.translate(line, gin_files.COMMAND_LINE).text for line in bindings])
    gin.finalize()
    return options.gin_file


def keep_compiled_programs() -> None:
    """Programs are compiled once and kept, in a folder of the user's, unless the environment says
    otherwise.

    JAX_COMPILATION_CACHE_DIR names another folder, or a bucket that all hosts see; set to nothing,
    nothing is kept.
    """
    for variable, value in _COMPILATION_CACHE.items():
        if variable not in os.environ:
            jax.config.update(variable.lower(), value)


_EPILOG = (
    "Every --gin.NAME=value overrides what the files say; strings need quotes "
    "(--gin.MODEL_DIR='\"runs/mine\"'). Each file in gin_configs/ says in its header what it is "
    "for and the command that runs it."
)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that a user can mend into one sentence and exit code 2.

    Wrap only what happens before compilation: constructors, data sources and checks raise
    ValueError, TypeError, LookupError or OSError with a sentence; after that point an exception is
    a bug and keeps its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
        fail(error)


def fail(error: Exception, code: int = USAGE_ERROR) -> NoReturn:
    """Ends the program with the error's sentence and an exit code."""
    # gin appends lines on where a configurable was called; the first paragraph is ours.
    message = str(error).split("\n  In call to configurable")[0].strip()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
