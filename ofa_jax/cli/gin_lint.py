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

from ofa_jax.cli import gin_files, gin_values
from ofa_jax.cli.errors import ConfigError
from ofa_jax.cli.gin_limits import check_import, enter
from ofa_jax.cli.gin_parser import Macro, Reference, mentioned, place_of, statements
from ofa_jax.cli.gin_values import REQUIRED, Binding
from ofa_jax.utils import renamed
from ofa_jax.utils.renamed import COMMAND_LINE
from ofa_jax.utils.suggestions import nearest

__all__ = ["REQUIRED", "check"]

_Found: TypeAlias = Binding | config_parser.ImportStatement
_MAX_FILES = 1000


@dataclasses.dataclass
class _Reader:
    """Yields the statements of gin files and bindings, and collects the old names in them.

    Attributes:
      search_paths: where included files are looked up.
      renamings: the old names so far.
      num_files: how many files were read so far.
    """

    search_paths: Sequence[str]
    renamings: list[gin_files.Renaming] = dataclasses.field(default_factory=list)
    num_files: int = 0

    def read_file(
        self, path: pathlib.Path, trail: Sequence[pathlib.Path] = (), where: str = ""
    ) -> Iterator[_Found]:
        """Yields the statements of a file and of those that it includes.

        Args:
          path: of the file.
          trail: the files that include it.
          where: the place of the `include`.
        """
        trail = enter(path, trail, where or str(path))
        self.num_files += 1
        if self.num_files > _MAX_FILES:
            raise ConfigError(f"{where}: more than {_MAX_FILES} files are included.")
        yield from self._parse(gin_files.read(path), str(path), trail)

    def read_binding(self, binding: str) -> Iterator[_Found]:
        """Yields the statement of a `NAME=value`."""
        yield from self._parse(gin_files.translate(binding, COMMAND_LINE), COMMAND_LINE, ())

    def _parse(
        self, content: gin_files.GinText, origin: str, trail: Sequence[pathlib.Path]
    ) -> Iterator[_Found]:
        """Yields the statements of a text, and of included files at the place of the `include`."""
        self.renamings += content.renamings
        for statement in statements(content.text, origin):
            place = place_of(origin, statement.location.line_num)
            if isinstance(statement, config_parser.IncludeStatement):
                path = gin_files.find_file(statement.filename, self.search_paths, place)
                self.renamings += gin_files.file_renamings(statement.filename, path, place)
                yield from self.read_file(path, trail, place)
            elif isinstance(statement, config_parser.BindingStatement):
                yield Binding(
                    statement.scope,
                    statement.selector,
                    statement.arg_name,
                    statement.value,
                    place,
                )
            elif isinstance(statement, config_parser.ImportStatement):
                yield statement


def check(
    files: Sequence[pathlib.Path],
    bindings: Sequence[str],
    search_paths: Sequence[str],
    lookup: Callable[[str], Any],
    names: Callable[[], Iterable[str]],
    not_needed: Collection[str] = (),
    renamings: Iterable[gin_files.Renaming] = (),
    warn: Callable[[str], None] = renamed.warn,
    allowed: Sequence[str] = (),
) -> list[str]:
    """Checks every name and value in gin files and command line bindings.

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
      allowed: modules that files may import, see `modules.may_import`.

    Returns:
      Those of `not_needed` that are left required.

    Raises:
      ConfigError: a text that is not gin; an unknown configurable, parameter or macro; an unused
        macro whose name resembles that of another one; a `%gin.REQUIRED` that nothing has set; a
        value that refers to itself, or that its parameter cannot take; a module that may not be
        imported.
    """
    reader = _Reader(search_paths, list(renamings))
    found: list[Binding] = []
    imports: list[config_parser.ImportStatement] = []
    sources = [reader.read_file(path) for path in files]
    sources += [reader.read_binding(binding) for binding in bindings]
    for statement in itertools.chain.from_iterable(sources):
        if isinstance(statement, Binding):
            found.append(statement)
        else:
            check_import(statement, allowed)
            imports.append(statement)
    for statement in imports:
        _import(statement)
    _warn_of_renamings(reader.renamings, warn)
    _check_configurables(found, lookup, names)
    # The last binding of a name counts, as in gin.
    final = {binding.key: binding for binding in found}
    left_open = _check_macros(final, not_needed)
    gin_values.check_cycles(final)
    gin_values.check_values(final, lookup)
    gin_values.check_modules(final, lookup, allowed)
    return left_open


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
    found: Sequence[Binding], lookup: Callable[[str], Any], names: Callable[[], Iterable[str]]
) -> None:
    """Raises ConfigError for a configurable or parameter that does not exist."""
    for binding in found:
        used = [(name.name, binding.where) for name in mentioned(binding.value, Reference)]
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


def _check_macros(final: Mapping[str, Binding], not_needed: Collection[str]) -> list[str]:
    """Raises ConfigError for a macro that is unset, unused or required; see `check`."""
    macros = {key: binding for key, binding in final.items() if not binding.parameter}
    used: dict[str, str] = {}
    for binding in final.values():
        for macro in mentioned(binding.value, Macro):
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
        if isinstance(binding.value, Macro) and binding.value.name == REQUIRED
    ]
    for binding in left_open:
        if binding.key not in not_needed:
            raise ConfigError(
                f"{binding.key} is required ({binding.where}): "
                f"set it with --gin.{binding.key}=VALUE or in a gin file that is read later."
            )
    return [binding.key for binding in left_open]
