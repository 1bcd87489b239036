"""Converts values of Python and numpy to those of strict JSON.

JSON knows neither NaN nor infinity, and a lone surrogate cannot be encoded as UTF-8: `to_json`
makes them null and U+FFFD, so that every program can read what is written.
"""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from ofa_jax.utils.text_files import replace_surrogates

__all__ = ["to_json"]


def to_json(value: Any) -> Any:
    """Returns a value in dicts, lists, texts, numbers, booleans and None.

    Tuples, sets and arrays become lists, bytes text (UTF-8), keys text, numbers that are not finite
    None, and lone surrogates U+FFFD.

    Raises:
      TypeError: JSON has nothing for a value of this type.
      RecursionError: it is nested too deeply.
    """
    if value is None or isinstance(value, bool | int):
        return value if value is None or type(value) in (bool, int) else int(value)
    if isinstance(value, str):
        return replace_surrogates(str(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {_key(key): to_json(own) for key, own in value.items()}
    if isinstance(value, Set):
        return [to_json(own) for own in sorted(value, key=repr)]
    if isinstance(value, Sequence):
        return [to_json(own) for own in value]
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _key(key: Any) -> str:
    return replace_surrogates(key) if isinstance(key, str) else str(to_json(key))
