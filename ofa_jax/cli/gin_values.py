"""Checks the values in gin files: macros that end, references that end, types and ranges.

A value is checked against the annotation of its parameter (see `ofa_jax.utils.options`) before
anything is built. Macros are replaced by their values; `@X()` is checked by what X returns.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ofa_jax.cli.errors import ConfigError
from ofa_jax.cli.gin_limits import unreachable
from ofa_jax.cli.gin_parser import Macro, Reference, mentioned
from ofa_jax.utils import option_checks
from ofa_jax.utils.modules import may_import
from ofa_jax.utils.option_checks import OptionError
from ofa_jax.utils.option_text import Result
from ofa_jax.utils.options import ModuleName
from ofa_jax.utils.renamed import COMMAND_LINE

__all__ = ["Binding", "check_cycles", "check_modules", "check_values"]

REQUIRED = "gin.REQUIRED"
_MAX_CHAIN, _MAX_EVALUATIONS = 50, 100_000
_COMMANDS = ("train", "evaluate", "infer", "plan")


@dataclasses.dataclass(frozen=True)
class Binding:
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


# ------------------------------------------------------------------------------ cycles


def check_cycles(final: Mapping[str, Binding]) -> None:
    """Raises ConfigError for a name whose value needs itself, or grows beyond all bounds.

    Args:
      final: what is bound in the end, by key.
    """
    done: dict[str, int] = {}
    for key, binding in final.items():
        start = f"%{key}" if not binding.parameter else f"@{key.rpartition('.')[0]}"
        _visit(start, final, done)


def _visit(start: str, final: Mapping[str, Binding], done: dict[str, int]) -> None:
    """Follows all names that a name needs; without recursion, for chains of any length.

    Args:
      start: the name.
      final: see `check_cycles`.
      done: names that were followed -> how many evaluations their values take; filled in here.
    """
    if start in done:
        return
    stack = [(start, iter(dict.fromkeys(_needs(start, final))))]
    trail = [start]
    while stack:
        name, needed = stack[-1]
        following = next((other for other in needed if other not in done), None)
        if following is None:
            done[name] = 1 + sum(done[other] for other in _needs(name, final))
            if done[name] > _MAX_EVALUATIONS:
                raise ConfigError(
                    f"The value of {name} ({_place(name, final)}) is made of more than "
                    f"{_MAX_EVALUATIONS:,} others: simplify it."
                )
            trail.pop()
            stack.pop()
            continue
        if following in trail:
            chain = [*trail[trail.index(following) :], following]
            shown = " -> ".join(chain if len(chain) <= 8 else [*chain[:4], "...", *chain[-3:]])
            raise ConfigError(
                f"{following} needs itself ({shown}; {_place(following, final)}): "
                "give one of them a value of its own."
            )
        trail.append(following)
        if len(trail) > _MAX_CHAIN:
            raise ConfigError(
                f"{start} ({_place(start, final)}) is the first of more than {_MAX_CHAIN} names "
                "that need each other: simplify the chain."
            )
        stack.append((following, iter(dict.fromkeys(_needs(following, final)))))


def _needs(name: str, final: Mapping[str, Binding]) -> list[str]:
    """Returns the names that must be evaluated before a name is, each as often as it is used."""
    needed = []
    for binding in _bindings_of(name, final):
        for macro in mentioned(binding.value, Macro):
            if macro.name in final:
                needed.append(f"%{macro.name}")
        for reference in mentioned(binding.value, Reference):
            if reference.called:
                needed.append(f"@{reference.name}")
    return needed


def _bindings_of(name: str, final: Mapping[str, Binding]) -> list[Binding]:
    """Returns the bindings that a macro or configurable is evaluated with."""
    if name.startswith("%"):
        return [final[name[1:]]] if name[1:] in final else []
    scope, _, selector = name[1:].rpartition("/")
    scopes = {"/".join(scope.split("/")[:count]) for count in range(1 + scope.count("/") + 1)}
    effective: dict[str, Binding] = {}
    for binding in final.values():
        same = _same(binding.selector, selector)
        if not (binding.parameter and same and (not binding.scope or binding.scope in scopes)):
            continue
        earlier = effective.get(binding.parameter)
        if earlier is None or len(earlier.scope) <= len(binding.scope):
            effective[binding.parameter] = binding
    return list(effective.values())


def _same(one: str, other: str) -> bool:
    """Returns whether two selectors name one configurable, one of them perhaps with its module."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _place(name: str, final: Mapping[str, Binding]) -> str:
    """Returns where a name is bound."""
    found = _bindings_of(name, final)
    return found[0].where if found else COMMAND_LINE


# ------------------------------------------------------------------------------ values


def check_values(final: Mapping[str, Binding], lookup: Callable[[str], Any]) -> None:
    """Raises ConfigError for a value that its parameter cannot take.

    Args:
      final: what is bound in the end, by key; without cycles.
      lookup: configurable name -> the function or class.
    """
    used = {
        reference.name.rpartition("/")[2]
        for binding in final.values()
        for reference in mentioned(binding.value, Reference)
    }
    for binding in final.values():
        if not binding.parameter:
            continue
        function = inspect.unwrap(lookup(binding.selector))
        if not option_checks.is_checked(lookup(binding.selector)):
            continue
        value, where = _resolved(binding, final, lookup)
        if value is None and not any(_same(binding.selector, one) for one in (*used, *_COMMANDS)):
            continue  # a file sets a required macro to None where nothing is made of it
        scope = f"{binding.scope}/" if binding.scope else ""
        name = scope + binding.selector.rpartition(".")[2]
        try:
            option_checks.check_option(function, binding.parameter, value, name, where)
        except OptionError as error:
            raise ConfigError(str(error)) from error


def check_modules(
    final: Mapping[str, Binding], lookup: Callable[[str], Any], allowed: Sequence[str]
) -> None:
    """Raises ConfigError for a file's value that names a module which may not be imported.

    Args:
      final: what is bound in the end, by key; without cycles, and with values of the right type.
      lookup: configurable name -> the function or class.
      allowed: modules that the command line names, see `modules.may_import`.
    """
    for binding in final.values():
        if not binding.parameter:
            continue
        hint = option_checks.type_hints(inspect.unwrap(lookup(binding.selector)))
        if not _names_modules(hint.get(binding.parameter)):
            continue
        literal, _ = _literal(binding, final)
        if literal.where == COMMAND_LINE:
            continue  # the user wrote it for this run
        names = [literal.value] if isinstance(literal.value, str) else literal.value or ()
        for module in names if isinstance(names, list | tuple) else ():
            if isinstance(module, str) and not may_import(module, allowed):
                raise ConfigError(unreachable(literal.where, module))


def _names_modules(hint: Any) -> bool:
    """Returns whether an annotation, or a part of it, is marked as names of modules."""
    if any(isinstance(part, ModuleName) for part in getattr(hint, "__metadata__", ())):
        return True
    return any(_names_modules(part) for part in typing.get_args(hint))


def _literal(binding: Binding, final: Mapping[str, Binding]) -> tuple[Binding, str]:
    """Returns the binding of the macro that a value comes from, and the macro's name."""
    name = ""
    while isinstance(binding.value, Macro) and binding.value.name in final:
        name = binding.value.name
        binding = final[name]
    return binding, name


def _resolved(
    binding: Binding, final: Mapping[str, Binding], lookup: Callable[[str], Any]
) -> tuple[Any, str]:
    """Returns a value with the values of macros in it, and its place."""
    literal, name = _literal(binding, final)
    where = f"on {COMMAND_LINE}" if literal.where == COMMAND_LINE else f"in {literal.where}"
    where = f"by {name} {where}" if name else where
    return _fill(literal.value, final, lookup), where


def _fill(value: Any, final: Mapping[str, Binding], lookup: Callable[[str], Any]) -> Any:
    """Replaces the names in a value: macros by their values, references by `Result`."""
    if isinstance(value, Macro):
        if value.name not in final:
            return Result(Any, value.name)  # gin.REQUIRED, or a constant of gin
        return _fill(final[value.name].value, final, lookup)
    if isinstance(value, Reference):
        return Result(_returned_kind(lookup, value.name), value.name, value.called)
    if isinstance(value, dict):
        return {key: _fill(item, final, lookup) for key, item in _items(value)}
    if isinstance(value, list | tuple):
        return type(value)(_fill(item, final, lookup) for item in value)
    return value


def _items(value: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yields the items of a dict whose keys are literals."""
    for key, item in value.items():
        name = f"%{key.name}" if isinstance(key, Macro) else getattr(key, "name", "")
        yield (name, item) if isinstance(key, Macro | Reference) else (key, item)


def _returned_kind(lookup: Callable[[str], Any], name: str) -> Any:
    """Returns what a configurable returns; Any if it does not say."""
    selector = name.rpartition("/")[2]
    function = inspect.unwrap(lookup(selector))
    if inspect.isclass(function):
        return function
    try:
        return typing.get_type_hints(function).get("return", Any)
    except (NameError, TypeError):  # the annotation of a user's module cannot be read
        return Any
