"""Puts options into words: values, types and ranges, for messages and the reference."""

import collections.abc
import dataclasses
import inspect
import numbers
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from ofa_jax.utils import options
from ofa_jax.utils.excerpts import truncate
from ofa_jax.utils.options import Constraint

SEQUENCES = (
    list,
    collections.abc.Sequence,
    collections.abc.Collection,
    collections.abc.Iterable,
)
"""Annotations of lists; a string is none of them."""

_MAX_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class Result:
    """Stands for what a function will return when a configuration is built.

    Attributes:
      kind: the annotation of what it returns; Any if unknown.
      name: of the function.
      called: whether it will be called; otherwise the option is given the function itself.
    """

    kind: Any
    name: str
    called: bool = True

    def __repr__(self) -> str:
        return f"@{self.name}{'()' * self.called}"


def show(value: Any) -> str:
    """Returns a value as a message shows it: short, and without memory addresses."""
    if isinstance(value, Result | None):
        return repr(value)
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if isinstance(value, str | bytes | bool):
        shown = repr(value[: _MAX_SHOWN + 1] if isinstance(value, str | bytes) else value)
    elif isinstance(value, numbers.Number):
        try:
            shown = repr(value)
        except ValueError:  # Python does not write numbers of thousands of digits
            return "a number of thousands of digits"
    elif isinstance(value, list | tuple | dict | set | frozenset):
        shown = _show_items(value)
    elif callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    else:
        return f"an object of the class {type(value).__name__}"
    return truncate(shown, _MAX_SHOWN)


def _show_items(value: Any) -> str:
    """Returns the first items of a container."""
    shown = []
    for item in list(value)[:8]:
        text = show(item)
        shown.append(f"{text}: {show(value[item])}" if isinstance(value, dict) else text)
    if len(value) > 8:
        shown.append("...")
    if isinstance(value, list):
        return f"[{', '.join(shown)}]"
    if isinstance(value, tuple):
        return f"({', '.join(shown)}{',' * (len(value) == 1)})"
    return f"{{{', '.join(shown)}}}"


_KINDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bool: ("True or False", "True or False"),
    bytes: ("bytes", "bytes"),
    type(None): ("None", "None"),
}


def describe(hint: Any) -> str:
    """Returns what an annotation allows, in words: "a whole number, at least 1, or None"."""
    constraints: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        constraints, hint = hint.__metadata__, hint.__origin__
    alternatives = typing.get_args(hint)
    if Any in alternatives:
        return "any value"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        text = ", or ".join(
            describe(one) for one in sorted(alternatives, key=lambda one: one is type(None))
        )
    else:
        text = kind_phrase(hint)
    if options.IsPath() in constraints:
        return "a path" if options.NotBlank() in constraints else "a path, which may be empty"
    limits = range_phrase(constraints)
    items = alternatives[-1:] if _is_container(hint) else ()
    if items and typing.get_origin(items[0]) is Annotated:
        each = range_phrase(items[0].__metadata__)
        limits = ", ".join([limits] * bool(limits) + [f"each {each}"] * bool(each))
    if not limits:
        return text
    return limits if hint is str else f"{text}, {limits}"


def _is_container(hint: Any) -> bool:
    """Returns whether an annotation is that of a list or dict whose items are alike."""
    origin = typing.get_origin(hint)
    return origin in (dict, collections.abc.Mapping, *SEQUENCES)


def range_phrase(constraints: Sequence[Any], broken: Sequence[Constraint] = ()) -> str:
    """Returns what follows "it must be" for constraints, some of which are broken."""
    found = [c for c in constraints if isinstance(c, Constraint)]
    # The largest count goes without saying where there is another bound.
    stated = [c for c in found if c != options.AtMost(options.LARGEST) or c in broken]
    if any(isinstance(c, options.NotBlank | options.IsPath) for c in broken):
        stated = list(broken)
    if stated == [options.Above(0)]:
        return "positive"
    low, high = (
        next((c for c in stated if isinstance(c, kind)), None)
        for kind in (options.AtLeast, options.AtMost)
    )
    phrases = [c.phrase for c in stated if low is None or high is None or c not in (low, high)]
    if isinstance(low, options.AtLeast) and isinstance(high, options.AtMost):
        phrases.insert(0, f"between {low.low} and {high.high}")
    return " and ".join(phrases)


def kind_phrase(hint: Any, plural: bool = False) -> str:
    """Returns a type in words."""
    if typing.get_origin(hint) is Annotated:
        return kind_phrase(hint.__origin__, plural)
    if hint in _KINDS:
        return _KINDS[hint][plural]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind_phrase(one, plural) for one in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is collections.abc.Callable:
        return "functions" if plural else "a function"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        names = list(dict.fromkeys(kind_phrase(one, True) for one in arguments))
        return f"{'lists' if plural else 'a list'} of {len(arguments)} {' and '.join(names)}"
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
        names = [kind_phrase(one, True) for one in arguments]
        return f"{'dicts' if plural else 'a dict'} from {names[0]} to {names[1]}"
    if origin is tuple or origin in SEQUENCES:
        return f"{'lists' if plural else 'a list'} of {kind_phrase(arguments[0], True)}"
    if inspect.isclass(hint) and hint not in (object, Any):
        return f"objects of {hint.__name__}" if plural else f"an object of {hint.__name__}"
    return "values" if plural else "any value"
