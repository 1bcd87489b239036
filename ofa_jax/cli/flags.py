"""The flags of the commands, and `--help`, which is answered before anything large is imported."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from ofa_jax.cli.errors import ConfigError
from ofa_jax.utils import distributed
from ofa_jax.utils.suggestions import nearest

__all__ = ["ArgumentParser", "answer_help", "make_parser", "parse_flags"]

_EPILOG = (
    "Every --gin.NAME=value overrides what the files say; strings need quotes "
    "(--gin.MODEL_DIR='\"runs/mine\"').\nEach file in gin_configs/ says in its header what it is "
    "for and the command that runs it."
)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises its errors as sentences."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(message[0].upper() + message[1:] + ".")


def make_parser(program: str, description: str) -> ArgumentParser:
    """Returns the parser of the flags other than `--gin.NAME=value`.

    Args:
      program: the command, for the usage line.
      description: for `--help`, as it is.
    """
    parser = ArgumentParser(
        prog=program,
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # commands keep their lines
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="read in the order given"
    )
    parser.add_argument(
        "--gin_search_paths",
        default="",
        metavar="DIR,DIR",
        help="where gin files are looked for, before the current folder and the project's own",
    )
    parser.add_argument(
        "--gin_import",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that gin files may import, besides those of this project and those in the "
        "folders of PYTHONPATH",
    )
    distributed.add_arguments(parser)
    return parser


def answer_help(program: str, description: str, arguments: Sequence[str]) -> None:
    """Prints the help and exits if it is asked for; otherwise it does nothing.

    Anything else about the arguments is reported by `parse_flags`, as before.

    Args:
      program: the command, for the usage line.
      description: for `--help`, as it is.
      arguments: the command line without the program.

    Raises:
      SystemExit: with code 0, after the help.
    """
    if "--help" in arguments or "-h" in arguments:
        make_parser(program, description).print_help()
        raise SystemExit(0)


def parse_flags(program: str, description: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags other than `--gin.NAME=value`.

    Args:
      program: the command, for the usage line.
      description: for `--help`, as it is.
      arguments: the command line without the program and without `--gin.NAME=value`.

    Raises:
      ConfigError: a flag is unknown or has a wrong value, or there is no gin file.
    """
    parser = make_parser(program, description)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [
            "--gin_file",
            "--gin_search_paths",
            "--gin_import",
            "--gin.",
            "--help",
            *distributed.FLAGS,
        ]
        flag = unknown[0].partition("=")[0]
        raise ConfigError(f"There is no flag {flag}.{nearest(flag, flags)} See `{program} --help`.")
    if not options.gin_file:
        raise ConfigError(
            f"No gin file given: add --gin_file=FILE, as in `{program} "
            "--gin_file=runs/pretrain_scenes.gin`."
        )
    return options
