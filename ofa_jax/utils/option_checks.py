"""Checks options against their annotations, with one sentence for each mistake.

`options` has the declarations. `checked` makes a class or a function check its own arguments;
`check_option` and `check_options` check values for others, as the commands do for gin files.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ofa_jax.utils.option_problems import (
    Problem,
    find_problem,
    find_variadic_problem,
    signature_hints,
    type_hints,
)
from ofa_jax.utils.option_text import Result, show

__all__ = [
    "OptionError",
    "Result",
    "check_option",
    "check_options",
    "checked",
    "checked_as",
    "is_checked",
    "type_hints",
]

_Checked = TypeVar("_Checked", bound=Callable[..., Any])


_CHECKED = "_checks_options"  # an attribute of functions


class OptionError(ValueError):
    """An option has a value that it cannot take."""


def checked(thing: _Checked) -> _Checked:
    """Makes a class or function check its arguments against their annotations; a decorator.

    The errors are OptionErrors, which are ValueErrors. Put it above `@dataclasses.dataclass`.
    """
    if inspect.isclass(thing):
        thing.__init__ = _checking(thing.__init__, thing, thing.__name__)  # type: ignore[method-assign]
        return thing
    return typing.cast(_Checked, _checking(thing, thing, thing.__name__))


def _checking(
    function: Callable[..., Any], owner: Callable[..., Any], name: str
) -> Callable[..., Any]:
    """Wraps a function so that it checks its arguments first; `owner` has the annotations."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def check_and_call(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # the call below says so
            arguments = {}
        # A subclass with its own __init__ checks its own arguments.
        check_options(owner, arguments, name)
        return function(*args, **kwargs)

    setattr(check_and_call, _CHECKED, True)
    return check_and_call


def checked_as(name: str, thing: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function or class in a function that checks its arguments under another name.

    Classes stay as they are, so that their instances can be pickled.
    """
    signature = inspect.signature(thing)

    @functools.wraps(thing, updated=())
    def check_and_make(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind_partial(*args, **kwargs).arguments
        check_options(thing, arguments, name)
        missing = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and parameter.name not in arguments
        ]
        if missing:
            raise OptionError(
                f"{name} needs {', '.join(missing)}: set "
                f"{' and '.join(f'{name}.{parameter}' for parameter in missing)}."
            )
        return thing(*args, **kwargs)

    check_and_make.__signature__ = signature  # type: ignore[attr-defined]  # for inspect.signature
    setattr(check_and_make, _CHECKED, True)
    return check_and_make


def is_checked(thing: Callable[..., Any]) -> bool:
    """Returns whether a function or class, or what it wraps, checks its arguments."""
    if inspect.isclass(thing):
        return is_checked(thing.__init__)
    while not hasattr(thing, _CHECKED):
        if "__wrapped__" not in getattr(thing, "__dict__", ()):
            return False
        thing = vars(thing)["__wrapped__"]
        if inspect.isclass(thing):
            return is_checked(thing)
    return True


def check_options(
    function: Callable[..., Any], arguments: Mapping[str, Any], name: str | None = None
) -> None:
    """Checks arguments of a function or class against its annotations.

    Args:
      function: or class.
      arguments: parameter -> value, as `inspect.BoundArguments` has them.
      name: what the sentences call the function; its own name when None.

    Raises:
      OptionError: one that an argument cannot be.
    """
    for parameter, value in arguments.items():
        if parameter != "self":
            check_option(function, parameter, value, name)


def check_option(
    function: Callable[..., Any],
    parameter: str,
    value: Any,
    name: str | None = None,
    place: str = "",
) -> None:
    """Checks one argument of a function or class against its annotation.

    Args:
      function: or class.
      parameter: of it, or one that its `**parameters` take.
      value: what it is given.
      name: what the sentence calls the function; its own name when None.
      place: what follows "It is set" in the sentence, e.g. "in run.gin, line 3".

    Raises:
      OptionError: the value cannot be used.
    """
    name = name or function.__name__
    hints, variadic = signature_hints(function)
    if parameter not in hints and variadic is not None:
        hint = hints.get(variadic, Any)
        problem = find_variadic_problem(name, {parameter: value}, hint)
    elif parameter == variadic:
        # A gin file may set the name itself, as if it were an option.
        given = value if isinstance(value, Mapping) else {parameter: value}
        problem = find_variadic_problem(name, given, hints.get(parameter, Any))
    else:
        problem = find_problem(f"{name}.{parameter}", value, hints.get(parameter, Any))
    if problem is not None:
        raise OptionError(_sentence(problem, place))


def _sentence(problem: Problem, place: str = "") -> str:
    set_by = f" It is set {place}." if place else ""
    statement = problem.statement or (
        f"{problem.where} is {show(problem.value)}; it must be {problem.wanted}"
    )
    return f"{statement}.{problem.advice}{set_by}"
