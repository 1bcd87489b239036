"""Checks gin files and command line bindings, and reports each mistake in one sentence.

gin reports an unknown name without its place, and does not notice a macro that nothing uses
(`--gin.TRAIN_STPES=10`). Here the files and the command line are scanned with gin's own parser
before anything is configured or compiled, so that each mistake is reported with its place and the
nearest right name.
"""

import dataclasses
import importlib
import inspect
import itertools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from gin import config_parser

from ofa_jax.cli import gin_files
from ofa_jax.cli.errors import ConfigError
from ofa_jax.cli.gin_files import COMMAND_LINE
from ofa_jax.utils import renamed
from ofa_jax.utils.suggestions import nearest

__all__ = ["REQUIRED", "check"]

REQUIRED = "gin.REQUIRED"


@dataclasses.dataclass(frozen=True)
class _Macro:
    """`%NAME` in a value."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Reference:
    """`@scope/name` or `@scope/name()` in a value."""

    name: str


class _Names(config_parser.ParserDelegate):
    """Returns the names in values as `_Reference` and `_Macro` instead of resolving them."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        del evaluate
        return _Reference(scoped_configurable_name)

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)


@dataclasses.dataclass(frozen=True)
class _Binding:
    """One `scope/selector.parameter = value`; a macro has no parameter."""

    scope: str
    selector: str
    parameter: str
    value: Any
    where: str

    @property
    def key(self) -> str:
        """What the statement binds, as gin writes it."""
        name = f"{self.scope}/{self.selector}" if self.scope else self.selector
        return f"{name}.{self.parameter}" if self.parameter else name


_Statement: TypeAlias = _Binding | config_parser.ImportStatement


def _mentioned(value: Any, kind: type) -> Iterator[Any]:
    """Yields all macros or references (as `kind` says) anywhere inside `value`."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _mentioned(pair, kind)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _mentioned(item, kind)


@dataclasses.dataclass
class _Reader:
    """Yields the statements of gin files and bindings, and collects the old names in them.

    Attributes:
      search_paths: where included files are looked up.
      renamings: the old names so far.
    """

    search_paths: Sequence[str]
    renamings: list[gin_files.Renaming] = dataclasses.field(default_factory=list)

    def read_file(self, path: pathlib.Path) -> Iterator[_Statement]:
        """Yields the statements of a file and of those that it includes."""
        yield from self._parse(gin_files.read(path), str(path))

    def read_binding(self, binding: str) -> Iterator[_Statement]:
        """Yields the statement of a `NAME=value`."""
        yield from self._parse(gin_files.translate(binding, COMMAND_LINE), COMMAND_LINE)

    def _parse(self, content: gin_files.GinText, origin: str) -> Iterator[_Statement]:
        """Yields the statements of a text, and of included files at the place of the `include`."""
        self.renamings += content.renamings
        source = gin_files.NamedText(content.text, origin)
        try:
            for statement in config_parser.ConfigParser(source, _Names()):
                place = origin
                if origin != COMMAND_LINE:
                    place = f"{origin}, line {statement.location.line_num}"
                if isinstance(statement, config_parser.IncludeStatement):
                    path = gin_files.find_file(statement.filename, self.search_paths)
                    self.renamings += gin_files.file_renamings(statement.filename, path, place)
                    yield from self.read_file(path)
                elif isinstance(statement, config_parser.BindingStatement):
                    yield _Binding(
                        statement.scope,
                        statement.selector,
                        statement.arg_name,
                        statement.value,
                        place,
                    )
                elif isinstance(statement, config_parser.ImportStatement):
                    yield statement
        except SyntaxError as error:
            raise _syntax_error(error, origin) from error


def _syntax_error(error: SyntaxError, origin: str) -> ConfigError:
    """Converts an error of gin's parser to a sentence with the place and the text."""
    location = error.args[1] if len(error.args) > 1 else None
    text = getattr(location, "line_content", "") or (location[3] if location else "")
    line = f", line {getattr(location, 'line_num', '?')}" if origin != COMMAND_LINE else ""
    reason = " ".join(str(error.args[0]).split())
    return ConfigError(
        f"{origin}{line}: cannot read `{(text or '').strip()}` as gin ({reason}); "
        "strings need quotes, as in --gin.MODEL_DIR='\"runs/mine\"'."
    )


def check(
    files: Sequence[pathlib.Path],
    bindings: Sequence[str],
    search_paths: Sequence[str],
    lookup: Callable[[str], Any],
    names: Callable[[], Iterable[str]],
    not_needed: Collection[str] = (),
    renamings: Iterable[gin_files.Renaming] = (),
    warn: Callable[[str], None] = renamed.warn,
) -> list[str]:
    """Checks every name in gin files and command line bindings.

    Old names are read as the new ones, and each is warned of once.

    Args:
      files: the gin files, in the order in which they are read.
      bindings: `NAME=value` strings from the command line, read last.
      search_paths: where `include` statements are looked up.
      lookup: configurable name -> the function or class (raises ValueError when unknown).
      names: the names of all configurables, for suggestions.
      not_needed: macros that may be left `%gin.REQUIRED`.
      renamings: old names that were found elsewhere, for the same warnings.
      warn: gets the sentences on old names.

    Returns:
      Those of `not_needed` that are left required.

    Raises:
      ConfigError: an unknown configurable, parameter or macro; a macro that nothing uses but
        resembles one; a `%gin.REQUIRED` that nothing has set.
    """
    reader = _Reader(search_paths, list(renamings))
    found: list[_Binding] = []
    sources = [reader.read_file(path) for path in files]
    sources += [reader.read_binding(binding) for binding in bindings]
    for statement in itertools.chain.from_iterable(sources):
        if isinstance(statement, _Binding):
            found.append(statement)
        else:
            _import(statement)
    _warn_of_renamings(reader.renamings, warn)
    _check_configurables(found, lookup, names)
    return _check_macros(found, not_needed)


def _warn_of_renamings(
    renamings: Iterable[gin_files.Renaming], warn: Callable[[str], None]
) -> None:
    """Passes one sentence per old name to `warn`, with all places of the name."""
    places: dict[tuple[str, str], list[str]] = {}
    for renaming in renamings:
        places.setdefault((renaming.old, renaming.new), []).append(renaming.where)
    for (old, new), where in places.items():
        warn(renamed.rename_sentence(old, new, where))


def _import(statement: config_parser.ImportStatement) -> None:
    """Imports the module of an `import` statement; raises ConfigError if that is impossible."""
    try:
        importlib.import_module(statement.module)
    except ModuleNotFoundError as error:
        location = statement.location
        raise ConfigError(
            f"{location.filename}, line {location.line_num}: cannot import {statement.module} "
            f"({error}); is its folder on PYTHONPATH?"
        ) from error


def _check_configurables(
    found: Sequence[_Binding], lookup: Callable[[str], Any], names: Callable[[], Iterable[str]]
) -> None:
    """Raises ConfigError for a configurable or parameter that does not exist."""
    for binding in found:
        used = [(name.name, binding.where) for name in _mentioned(binding.value, _Reference)]
        if binding.parameter:
            used.append((binding.selector, binding.where))
        for name, where in used:
            selector = name.rsplit("/", 1)[-1]
            try:
                lookup(selector)
            except ValueError as error:
                raise ConfigError(
                    f"Nothing named {selector} can be configured ({where})."
                    f"{nearest(selector, names())}"
                ) from error
        if not binding.parameter:
            continue
        parameters = inspect.signature(lookup(binding.selector)).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if binding.parameter not in parameters and not takes_any:
            raise ConfigError(
                f"{binding.selector} has no parameter {binding.parameter} ({binding.where})."
                f"{nearest(binding.parameter, parameters)}"
            )


def _check_macros(found: Sequence[_Binding], not_needed: Collection[str]) -> list[str]:
    """Raises ConfigError for a macro that is unset, unused or required; see `check`."""
    # The last binding of a name counts, as in gin.
    final = {binding.key: binding for binding in found}
    macros = {key: binding for key, binding in final.items() if not binding.parameter}
    used: dict[str, str] = {}
    for binding in final.values():
        for macro in _mentioned(binding.value, _Macro):
            if macro.name != REQUIRED:
                used.setdefault(macro.name, binding.where)

    # A misspelt macro causes two errors: the wrong name is set but unused, the right name is unset
    # or required. Names on the command line are reported first, because they were written last.
    unset = {name: where for name, where in used.items() if name not in macros}
    unused = {name: binding for name, binding in macros.items() if name not in used}
    for name, binding in unused.items():
        if binding.where == COMMAND_LINE:
            hint = nearest(name, used)
            raise ConfigError(f"{name} is set ({binding.where}) but nothing uses it.{hint}")
    for name, where in unset.items():
        raise ConfigError(f"%{name} is used ({where}) but never set.{nearest(name, macros)}")
    for name, binding in unused.items():
        if hint := nearest(name, used):
            raise ConfigError(f"{name} is set ({binding.where}) but nothing uses it.{hint}")
    left_open = [
        binding
        for binding in final.values()
        if isinstance(binding.value, _Macro) and binding.value.name == REQUIRED
    ]
    for binding in left_open:
        if binding.key not in not_needed:
            raise ConfigError(
                f"{binding.key} is required ({binding.where}): "
                f"set it with --gin.{binding.key}=VALUE or in a gin file that is read later."
            )
    return [binding.key for binding in left_open]
