"""Finds the sets of weights that a checkpoint of fairseq holds: the last ones, and averaged ones.

fairseq keeps an exponential moving average as `extra_state.ema`, and in float32 as
`extra_state.ema_fp32_params`; the reference implementation evaluates the first with `--ema-eval`
(OFA, utils/checkpoint_utils.py, load_ema_from_checkpoint). Other programs have it elsewhere.
"""

import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ofa_jax.interop import torch_file
from ofa_jax.utils.wrong_files import shorten

MODEL, EMA = "model", "ema"
_USUAL = "extra_state.ema"
_PREFIX = "module."
_MAX_DEPTH, _MAX_LISTED = 3, 8
_SHARE = 0.25
_READ = ("args", "cfg", MODEL)
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")

Weights = dict[str, np.ndarray]


def find(content: Mapping[str, Any]) -> dict[str, Weights]:
    """Returns the sets of weights of a file by where they are, the usual place of averages first.

    Args:
      content: of a file, with "model".
    """
    last = torch_file.tensors_of(content[MODEL])
    others = dict(_search(content, last.keys(), "", {id(content), id(content[MODEL])}))
    return {MODEL: last} | dict(sorted(others.items(), key=lambda item: item[0] != _USUAL))


def _search(
    content: Mapping[Any, Any], names: Collection[str], place: str, seen: set[int]
) -> Iterator[tuple[str, Weights]]:
    """Yields the places of weights with many of these names, and the weights."""
    for key, value in content.items():
        if not isinstance(value, Mapping) or not isinstance(key, str) or id(value) in seen:
            continue
        seen.add(id(value))
        here = f"{place}.{key}" if place else key
        tensors = {
            name.removeprefix(_PREFIX): array
            for name, array in torch_file.tensors_of(value).items()
        }
        if tensors and sum(name in tensors for name in names) >= _SHARE * len(names):
            yield here, tensors
        elif here.count(".") < _MAX_DEPTH:
            yield from _search(value, names, here, seen)


def select(
    found: Mapping[str, Weights], weights: str, path: pathlib.Path
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns where the wanted weights are, and the weights.

    Args:
      found: see `find`.
      weights: "model", "ema", or where they are, such as "extra_state.ema".
      path: of the file, for the error.

    Raises:
      ValueError: there are no such weights.
    """
    if weights == MODEL:
        return MODEL, found[MODEL]
    place = next((place for place in found if place != MODEL), "") if weights == EMA else weights
    if place not in found:
        raise ValueError(
            f"{path} does not hold the weights {shorten(weights)}: it has "
            f"{', '.join(map(shorten, found))}."
        )
    taken = found[place]
    # Batch statistics are averages already, and some programs keep them with the model alone.
    kept = {
        name: taken.get(name, array)
        for name, array in found[MODEL].items()
        if name in taken or name.endswith(_STATISTICS)
    }
    return place, kept | taken


def describe_rest(content: Mapping[str, Any], found: Collection[str]) -> tuple[str, ...]:
    """Returns what a file holds besides weights and arguments, such as "extra_state (epoch)"."""
    rest = []
    for key, value in content.items():
        empty = value is None or (isinstance(value, dict | list) and not value)
        if empty or key in _READ or key in found:
            continue
        if isinstance(value, Mapping):
            within = [shorten(name) for name in value if f"{key}.{name}" not in found]
            if within:
                rest.append(f"{shorten(key)} ({_listed(within)})")
        else:
            rest.append(shorten(key))
    return tuple(rest[:_MAX_LISTED])


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
