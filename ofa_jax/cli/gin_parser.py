"""Parses gin statements, and turns every way in which a text is not gin into one sentence.

gin's own parser reads the text, so that what is checked is what gin will see. Names in values are
kept as `Macro` and `Reference` instead of being resolved.
"""

import dataclasses
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from gin import config_parser

from ofa_jax.cli.errors import ConfigError
from ofa_jax.utils.excerpts import truncate
from ofa_jax.utils.renamed import COMMAND_LINE
from ofa_jax.utils.wrong_files import shorten

__all__ = [
    "Macro",
    "NamedText",
    "Reference",
    "Statement",
    "lines_of",
    "mentioned",
    "place_of",
    "statements",
]

Statement: TypeAlias = (
    config_parser.BindingStatement
    | config_parser.BlockDeclaration
    | config_parser.ImportStatement
    | config_parser.IncludeStatement
)


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME` in a value."""

    name: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/name` or, if it is `called`, `@scope/name()` in a value."""

    name: str
    called: bool


class _Names(config_parser.ParserDelegate):
    """Returns the names in values as `Reference` and `Macro` instead of resolving them."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


class NamedText(io.StringIO):
    """Text with a file's name, which gin's messages give."""

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self.name = name


def lines_of(text: str) -> list[str]:
    """Returns the lines with their ends, as gin counts them: they end at line feeds alone."""
    return io.StringIO(text).readlines()


def place_of(origin: str, line: int) -> str:
    """Returns where a line is: "run.gin, line 3", or the command line."""
    return origin if origin == COMMAND_LINE else f"{origin}, line {line}"


def mentioned(value: Any, kind: type) -> Iterator[Any]:
    """Yields all macros or references (as `kind` says) anywhere inside a value."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from mentioned(pair, kind)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from mentioned(item, kind)


def statements(text: str, origin: str) -> Iterator[Statement]:
    """Yields the statements of a text.

    Args:
      text: of a file, or a `NAME = value`.
      origin: the file's name, or COMMAND_LINE; for the places.

    Raises:
      ConfigError: the text is not gin; when the statement is reached.
    """
    parser = None
    try:
        parser = config_parser.ConfigParser(NamedText(text, origin), _Names())
        while (statement := parser.parse_statement()) is not None:
            yield statement
    except SyntaxError as error:
        raise _syntax_error(error, text, origin) from error
    except tokenize.TokenError as error:
        raise _unfinished(error, text, origin) from error
    except (RecursionError, MemoryError):
        line = parser.current_token.start[0] if parser else 1
        raise ConfigError(
            f"{place_of(origin, line)}: the value is nested too deeply; simplify it."
        ) from None
    except (StopIteration, TypeError, ValueError, LookupError, AssertionError) as error:
        # What gin's parser does not foresee: an unhashable key of a dict, a block without end.
        line = parser.current_token.start[0] if parser else 1
        reason = f" ({shorten(' '.join(str(error).split()), 200)})" if str(error) else ""
        raise ConfigError(f"{place_of(origin, line)}: cannot read this as gin{reason}.") from error


def _syntax_error(error: SyntaxError, text: str, origin: str) -> ConfigError:
    """Converts an error of gin's parser to a sentence with the place and the text."""
    location = error.args[1] if len(error.args) > 1 else None
    if isinstance(location, config_parser.Location):
        line, content = location.line_num, location.line_content
    elif location:  # (file, line, column, text, ...), as Python's own parser has it
        line, content = location[1] or 1, location[3]
    else:
        line, content = 1, ""
    reason = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error.args[0]).split()))
    reason = shorten(reason, 200)
    opened = _open_bracket(text, line)
    if opened is not None and opened[1] < line:
        reason = f"the bracket `{opened[0]}` of line {opened[1]} is not closed"
    shown = truncate((content or "").strip(), 120)
    return ConfigError(
        f"{place_of(origin, line)}: cannot read `{shown}` as gin ({reason}); "
        "strings need quotes, as in --gin.MODEL_DIR='\"runs/mine\"'."
    )


def _unfinished(error: tokenize.TokenError, text: str, origin: str) -> ConfigError:
    """Converts the error of a text that ends within a string or bracket."""
    row = error.args[1][0] if len(error.args) > 1 else 1
    opened = _open_bracket(text, None)
    if opened is not None and "string" not in str(error.args[0]):
        return ConfigError(
            f"{place_of(origin, opened[1])}: the bracket `{opened[0]}` is never closed."
        )
    what = "string" if "string" in str(error.args[0]) else "statement"
    return ConfigError(f"{place_of(origin, row)}: the {what} that begins here does not end.")


def _open_bracket(text: str, line: int | None) -> tuple[str, int] | None:
    """Returns the innermost bracket that is open where a line begins, and its line.

    Args:
      text: gin statements.
      line: counted from 1; None for the end of the text.
    """
    brackets: list[tuple[str, int]] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if line is not None and token.start[0] >= line:
                break
            if token.type == tokenize.OP and token.string in "([{":
                brackets.append((token.string, token.start[0]))
            elif token.type == tokenize.OP and token.string in ")]}" and brackets:
                brackets.pop()
    except (tokenize.TokenError, SyntaxError):
        pass
    return brackets[-1] if brackets else None
