"""Finds out what is wrong with the value of an option, given its annotation."""

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from ofa_jax.utils import options
from ofa_jax.utils.option_text import SEQUENCES, Result, kind_phrase, range_phrase, show
from ofa_jax.utils.options import Constraint, FieldsOf
from ofa_jax.utils.suggestions import nearest

__all__ = ["Problem", "find_problem", "find_variadic_problem", "signature_hints", "type_hints"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A value that an option cannot take.

    Attributes:
      where: the option, or the part of it.
      value: what it is.
      wanted: what follows "it must be".
      right_kind: whether only the range is wrong, or a part.
      advice: a sentence after a space, or "".
      statement: what replaces "WHERE is VALUE; it must be WANTED".
    """

    where: str
    value: Any
    wanted: str
    right_kind: bool = False
    advice: str = ""
    statement: str = ""


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns parameter -> annotation of a function or class, with constraints."""
    return signature_hints(function)[0]


@functools.cache
def signature_hints(function: Callable[..., Any]) -> tuple[dict[str, Any], str | None]:
    """Returns the annotations, and the name of the `**parameters` if there are any."""
    made_by = function.__init__ if inspect.isclass(function) else function
    made_by = inspect.unwrap(made_by)
    if not hasattr(made_by, "__annotations__"):
        return {}, None
    try:
        hints = typing.get_type_hints(made_by, include_extras=True)
    except (NameError, TypeError):  # annotations of a user's that cannot be evaluated
        hints = {}
    hints.pop("return", None)
    parameters = inspect.signature(made_by).parameters.values()
    for parameter in parameters:
        hint = hints.get(parameter.name, Any)
        if parameter.default is None and _first_problem("", None, hint) is not None:
            hints[parameter.name] = typing.Optional[hint]  # noqa: UP045
    variadic = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            hints[parameter.name] = Any
    return hints, variadic


def find_problem(where: str, value: Any, hint: Any) -> Problem | None:
    """Returns what is wrong with a value, or None."""
    problem = _first_problem(where, value, hint)
    help_texts = [c.text for c in getattr(hint, "__metadata__", ()) if isinstance(c, options.Help)]
    if problem is None or not help_texts:
        return problem
    return dataclasses.replace(problem, advice=" ".join([problem.advice, *help_texts]))


def _first_problem(where: str, value: Any, hint: Any) -> Problem | None:
    """Returns what is wrong with a value, without the help of its annotation, or None."""
    constraints: tuple[Any, ...] = ()
    origin = typing.get_origin(hint)
    if origin is Annotated:
        constraints, hint = hint.__metadata__, hint.__origin__
        origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        problem = _union_problem(where, value, typing.get_args(hint))
    else:
        problem = _type_problem(where, value, hint, constraints)
    if problem is not None or isinstance(value, Result):
        return problem
    for constraint in constraints:
        if isinstance(constraint, FieldsOf):
            problem = _fields_problem(where, value, constraint)
            if problem is not None:
                return problem
    broken = [c for c in constraints if isinstance(c, Constraint) and not c.holds(value)]
    if not broken:
        return None
    wanted = range_phrase(constraints, broken)
    return Problem(where, value, wanted, True, "".join(c.advice(value) for c in broken))


def _union_problem(where: str, value: Any, alternatives: Sequence[Any]) -> Problem | None:
    """Returns what is wrong with a value that may be of several types, or None."""
    problems: list[Problem] = []
    for alternative in alternatives:
        problem = find_problem(where, value, alternative)
        if problem is None:
            return None
        problems.append(problem)
    optional = ", or None" if type(None) in alternatives else ""
    right_kind = [problem for problem in problems if problem.right_kind]
    if right_kind:
        problem = right_kind[0]
        suffix = optional if problem.where == where else ""
        return dataclasses.replace(problem, wanted=problem.wanted + suffix)
    advice = next((one.advice for one in problems if one.advice), "")
    wanted = " or ".join(
        dict.fromkeys(p.wanted for p in sorted(problems, key=lambda p: p.wanted == "None"))
    )
    return Problem(where, value, wanted, advice=advice)


def _type_problem(
    where: str, value: Any, hint: Any, constraints: Sequence[Any] = ()
) -> Problem | None:
    """Returns what is wrong with the type of a value, or of a part of it, or None."""
    if isinstance(value, Result):
        fits = _may_return(value, hint)
        advice = "" if fits or value.called else f" Write @{value.name}() for what it returns."
        return None if fits else Problem(where, value, kind_phrase(hint), advice=advice)
    kind = typing.get_origin(hint) or hint
    if hint in (int, float):
        return _number_problem(where, value, hint, constraints)
    if hint is None or hint is type(None):
        return None if value is None else Problem(where, value, "None")
    if hint in (str, bool, bytes):
        # A bool of numpy is one; subclasses of str are strings.
        fits = isinstance(value, hint) or (hint is bool and type(value).__name__ == "bool_")
        if options.IsPath() in constraints:
            fits = isinstance(value, str | os.PathLike)
        return None if fits else Problem(where, value, kind_phrase(hint))
    if kind is typing.Literal:
        names = typing.get_args(hint)
        if value in names:
            return None
        return Problem(where, value, kind_phrase(hint), advice=nearest(str(value), names))
    if kind is collections.abc.Callable:
        return None if callable(value) else Problem(where, value, kind_phrase(hint))
    if not inspect.isclass(kind) or kind in (object, Any):
        return None  # Any, a TypeVar, a shape of jaxtyping
    if issubclass(kind, collections.abc.Mapping):
        return _mapping_problem(where, value, hint)
    if kind is tuple or kind in SEQUENCES:
        return _sequence_problem(where, value, hint)
    return _object_problem(where, value, kind)


def _number_problem(
    where: str, value: Any, hint: type, constraints: Sequence[Any]
) -> Problem | None:
    """Returns what is wrong with a number, apart from its range."""
    kind = numbers.Integral if hint is int else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
        advice = ""
        if isinstance(value, str) and _reads_as(value, hint):
            advice = " Write it without quotes."
        elif isinstance(value, float) and value.is_integer():
            advice = f" Write {int(value)}." if abs(value) < 1e15 else ""
        return Problem(where, value, kind_phrase(hint), advice=advice)
    may_be_infinite = any(
        c is options.MayBeInfinite or isinstance(c, options.MayBeInfinite) for c in constraints
    )
    if hint is float and not options.is_finite(value):
        if may_be_infinite and value == value:  # not NaN
            return None
        return Problem(where, value, "a finite number", True)
    return None


def _reads_as(text: str, hint: type) -> bool:
    """Returns whether a string has a number that an option would take without quotes."""
    try:
        hint(text)
    except ValueError:
        return False
    return True


def _sequence_problem(where: str, value: Any, hint: Any) -> Problem | None:
    """Returns what is wrong with a list or tuple, or with one of its items."""
    kind, items = typing.get_origin(hint) or hint, typing.get_args(hint)
    listed = isinstance(value, collections.abc.Collection) and not isinstance(
        value, str | bytes | collections.abc.Mapping
    )
    if not listed:
        advice = ""
        if isinstance(value, str) and items and find_problem(where, value, items[0]) is None:
            advice = f" Write {show([value])} for a single one."
        return Problem(where, value, kind_phrase(hint), advice=advice)
    if kind is tuple and items and items[-1] is not Ellipsis:
        if len(value) != len(items):
            return Problem(where, value, kind_phrase(hint), True)
        hints: Iterator[Any] = iter(items)
    else:
        hints = iter([items[0] if items else Any] * len(value))
    for index, (item, item_hint) in enumerate(zip(value, hints, strict=True)):
        problem = find_problem(f"{where}[{index}]", item, item_hint)
        if problem is not None:
            return dataclasses.replace(problem, right_kind=True)
    return None


def _mapping_problem(where: str, value: Any, hint: Any) -> Problem | None:
    """Returns what is wrong with a dict, or with one of its items."""
    if not isinstance(value, Mapping):
        return Problem(where, value, kind_phrase(hint))
    key_hint, item_hint = typing.get_args(hint) or (Any, Any)
    for key, item in value.items():
        problem = find_problem(f"a key of {where}", key, key_hint)
        problem = problem or find_problem(f"{where}[{show(key)}]", item, item_hint)
        if problem is not None:
            return dataclasses.replace(problem, right_kind=True)
    return None


def _fields_problem(where: str, value: Mapping[str, Any], fields: FieldsOf) -> Problem | None:
    """Returns what is wrong with a dict of options, or None."""
    hints = type_hints(fields.owner)
    for name, item in value.items():
        if name not in hints or name in fields.without:
            known = sorted(set(hints) - set(fields.without))
            shown = show(name)[1:-1] if isinstance(name, str) else show(name)
            statement = f"{where} names {shown}; known are {', '.join(known)}"
            advice = nearest(str(name), known)
            return Problem(where, name, "", True, advice, statement)
        problem = find_problem(f"{where}[{name!r}]", item, hints[name])
        if problem is not None:
            return dataclasses.replace(problem, right_kind=True)
    return None


def find_variadic_problem(name: str, values: Mapping[str, Any], hint: Any) -> Problem | None:
    """Returns what is wrong with the arguments of `**parameters`."""
    owners = [c for c in getattr(hint, "__metadata__", ()) if isinstance(c, FieldsOf)]
    if not owners:
        return None
    hints = type_hints(owners[0].owner)
    for parameter, value in values.items():
        if parameter not in hints:
            statement = f"{name} has no parameter {parameter}"
            return Problem(name, value, "", advice=nearest(parameter, hints), statement=statement)
        problem = find_problem(f"{name}.{parameter}", value, hints[parameter])
        if problem is not None:
            return problem
    return None


def _object_problem(where: str, value: Any, kind: type) -> Problem | None:
    """Returns what is wrong with an object that must be of a class, or fulfil a Protocol."""
    if inspect.isclass(value):
        advice = f" Write {value.__name__}(), with parentheses, for an object of it."
        return Problem(where, value, kind_phrase(kind), advice=advice)
    if getattr(kind, "_is_protocol", False):
        plain = value is None or isinstance(
            value, str | bytes | numbers.Number | list | tuple | dict | set
        )
        fits = not plain and not [m for m in _members(kind) if not _has(value, m)]
    else:
        fits = isinstance(value, kind)
    if fits:
        return None
    advice = ""
    if inspect.isfunction(value):
        advice = f" Write @{value.__name__}() in gin, with parentheses, for what it returns."
    return Problem(where, value, kind_phrase(kind), advice=advice)


@functools.cache
def _members(protocol: type) -> tuple[str, ...]:
    """Returns the names of a Protocol's methods and properties."""
    bases = [base for base in protocol.__mro__ if base.__dict__.get("_is_protocol", False)]
    return tuple(
        name
        for base in bases
        for name, member in vars(base).items()
        if not name.startswith("_")
        or (name in ("__call__", "__len__", "__getitem__") and inspect.isfunction(member))
    )


def _has(value: Any, name: str) -> bool:
    """Returns whether an object has a method or property, without computing it."""
    try:
        inspect.getattr_static(value, name)
    except AttributeError:
        return hasattr(type(value), "__getattr__")
    return True


def _may_return(result: Result, hint: Any) -> bool:
    """Returns whether what a function returns can be of a type; True if that is unknown."""
    kind = typing.get_origin(hint) or hint
    if not result.called:
        return not inspect.isclass(kind) or kind in (object, Any, collections.abc.Callable)
    if result.kind in (Any, inspect.Parameter.empty, None):
        return True
    given = result.kind.__origin__ if hasattr(result.kind, "__metadata__") else result.kind
    if typing.get_origin(given) in (typing.Union, types.UnionType):
        return any(_may_return(Result(one, result.name), hint) for one in typing.get_args(given))
    given = typing.get_origin(given) or given
    if not inspect.isclass(given) or not inspect.isclass(kind):
        return True
    if getattr(kind, "_is_protocol", False) or getattr(given, "_is_protocol", False):
        return given not in (int, float, str, bool, bytes)
    return issubclass(given, kind) or issubclass(kind, given) or (given, kind) == (int, float)
