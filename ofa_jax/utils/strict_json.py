"""Parses JSON in which every object has each key once, and every number is finite.

Python's parser takes the last one of two values of a key, and NaN and Infinity for numbers. Which
value its author meant nobody knows, so an object with a key twice is refused, or marked for callers
that can leave out the part of a file that has it.
"""

import collections
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from ofa_jax.utils.excerpts import truncate

__all__ = ["MarkedObject", "NotFiniteError", "RepeatedKeyError", "object_or_mark", "parse"]

_MAX_SHOWN = 40


class RepeatedKeyError(ValueError):
    """An object has a key twice; the clause says which.

    Attributes:
      key: the first one.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"it has the key {json.dumps(truncate(key, _MAX_SHOWN))} twice")
        self.key = key


class NotFiniteError(ValueError):
    """A number is NaN or infinite.

    Attributes:
      name: as it is written.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not JSON")
        self.name = name


class MarkedObject(dict[str, Any]):
    """An object with a key twice, of whose values the last ones are here.

    Attributes:
      repeated: the keys that it has more than once.
    """

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = collections.Counter(name for name, _ in pairs)
        self.repeated = tuple(name for name, count in counts.items() if count > 1)


def parse(text: str, only_finite: bool = True, mark_repeated: bool = False) -> Any:
    """Parses JSON.

    Args:
      text: one value of JSON.
      only_finite: whether NaN and Infinity are refused.
      mark_repeated: whether an object with a key twice becomes a MarkedObject instead of an error.

    Raises:
      RepeatedKeyError: an object has a key twice.
      NotFiniteError: a number is NaN or infinite.
      ValueError: it is not JSON.
      RecursionError: it is nested too deeply.
    """
    return json.loads(
        text,
        object_pairs_hook=object_or_mark if mark_repeated else _refuse_repeated,
        parse_constant=_refuse_constant if only_finite else None,
    )


def object_or_mark(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object, marked if it has a key twice: an `object_pairs_hook`."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else MarkedObject(pairs)


def _refuse_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKeyError(MarkedObject(pairs).repeated[0])
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise NotFiniteError(name)
