"""Reads gin files as a person would and says in one sentence what is wrong with them.

gin itself stops at an unknown name with the name alone, and does not notice a macro that nothing
uses (`--gin.TRAIN_STPES=10`) at all. Here the files and the command line are scanned with gin's own
parser before anything is configured, so that each mistake is reported with its place and the
nearest right name, and long before anything is compiled.
"""

import dataclasses
import importlib
import inspect
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gin import config_parser

from ofa_jax.utils.suggestions import nearest

COMMAND_LINE = "the command line"
REQUIRED = "gin.REQUIRED"


class ConfigError(ValueError):
    """A mistake of the user's, told in one sentence: what is wrong, where, and what to do."""


@dataclasses.dataclass(frozen=True)
class _Macro:
    """`%NAME` in a value."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Reference:
    """`@scope/name` or `@scope/name()` in a value."""

    name: str


class _Names(config_parser.ParserDelegate):
    """Keeps the names that values mention, instead of resolving them."""

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
        name = f"{self.scope}/{self.selector}" if self.scope else self.selector
        return f"{name}.{self.parameter}" if self.parameter else name


def _mentioned(value: Any, kind: type) -> Iterator[Any]:
    """All macros or references anywhere inside `value`."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _mentioned(pair, kind)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _mentioned(item, kind)


def find_file(name: str, search_paths: Sequence[str]) -> pathlib.Path:
    """The gin file `name`, looked for as given and then in each of `search_paths`.

    Raises:
      ConfigError: there is no such file; names the nearest gin file that exists.
    """
    for directory in ("", *search_paths):
        path = pathlib.Path(directory) / name
        if path.is_file():
            return path.resolve()
    known = [
        str(path.relative_to(directory))
        for directory in map(pathlib.Path, search_paths)
        for path in sorted(directory.glob("gin_configs/**/*.gin")) + sorted(directory.glob("*.gin"))
    ]
    hint = nearest(name, known) or nearest(
        f"gin_configs/{name}", [path for path in known if path.endswith(pathlib.Path(name).name)]
    )
    places = ", ".join(str(pathlib.Path(path).resolve()) for path in search_paths)
    raise ConfigError(f"There is no gin file {name} (looked in {places}).{hint}")


def _statements(
    path: pathlib.Path, search_paths: Sequence[str]
) -> Iterator[_Binding | config_parser.ImportStatement]:
    with path.open() as file:
        yield from _parse(file, str(path), search_paths)


def _parse(
    source: Any, origin: str, search_paths: Sequence[str]
) -> Iterator[_Binding | config_parser.ImportStatement]:
    try:
        for statement in config_parser.ConfigParser(source, _Names()):
            if isinstance(statement, config_parser.IncludeStatement):
                yield from _statements(find_file(statement.filename, search_paths), search_paths)
            elif isinstance(statement, config_parser.BindingStatement):
                where = origin
                if origin != COMMAND_LINE:
                    where = f"{origin}, line {statement.location.line_num}"
                yield _Binding(
                    statement.scope, statement.selector, statement.arg_name, statement.value, where
                )
            elif isinstance(statement, config_parser.ImportStatement):
                yield statement
    except SyntaxError as error:
        location = error.args[1] if len(error.args) > 1 else None
        text = getattr(location, "line_content", "") or (location[3] if location else "")
        line = f", line {getattr(location, 'line_num', '?')}" if origin != COMMAND_LINE else ""
        reason = " ".join(str(error.args[0]).split())
        raise ConfigError(
            f"{origin}{line}: cannot read `{(text or '').strip()}` as gin ({reason}); "
            "strings need quotes, as in --gin.MODEL_DIR='\"runs/mine\"'."
        ) from error


def check(
    files: Sequence[pathlib.Path],
    bindings: Sequence[str],
    search_paths: Sequence[str],
    lookup: Callable[[str], Any],
    names: Callable[[], Iterable[str]],
    not_needed: Collection[str] = (),
) -> list[str]:
    """Checks every name in gin files and command line bindings.

    Args:
      files: the gin files, in the order in which they are read.
      bindings: `NAME=value` strings from the command line, read last.
      search_paths: where `include` statements are looked up.
      lookup: configurable name -> the function or class (raises ValueError when unknown).
      names: the names of all configurables, for suggestions.
      not_needed: macros that may be left `%gin.REQUIRED`.

    Returns:
      Those of them that are.

    Raises:
      ConfigError: an unknown configurable, parameter or macro; a macro that nothing uses but
        resembles one; a `%gin.REQUIRED` that nothing has set.
    """
    found: list[_Binding] = []
    sources: list[Iterable] = [_statements(path, search_paths) for path in files]
    for binding in bindings:
        sources.append(_parse(binding, COMMAND_LINE, search_paths))
    for source in sources:
        for statement in source:
            if isinstance(statement, config_parser.ImportStatement):
                _import(statement)
            else:
                found.append(statement)
    _check_configurables(found, lookup, names)
    return _check_macros(found, not_needed)


def _import(statement: config_parser.ImportStatement) -> None:
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
    # The last binding of a name counts, as in gin.
    final = {binding.key: binding for binding in found}
    macros = {key: binding for key, binding in final.items() if not binding.parameter}
    used: dict[str, str] = {}
    for binding in final.values():
        for macro in _mentioned(binding.value, _Macro):
            if macro.name != REQUIRED:
                used.setdefault(macro.name, binding.where)

    # A misspelt macro shows twice: the wrong name is set and unused, the right one unset or left
    # open. What stands on the command line was written last, so it is named first.
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
