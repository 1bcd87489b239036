"""All names that were renamed: what was written under a former name is still read.

Each table maps former names to today's. `with_new_names` translates the keys of a mapping, and
`former_names` looks a name up in the other direction.
"""

from collections.abc import Mapping
from typing import TypeVar

_Value = TypeVar("_Value")

SCENES: Mapping[str, str] = {
    "pictures": "images",
    "picture_size": "image_size",
}
"""The folder of a TFDS config, keys of scenes.json, and options of tools.build_scenes."""


def with_new_names(values: Mapping[str, _Value], table: Mapping[str, str]) -> dict[str, _Value]:
    """Returns the values under today's names of their keys."""
    return {table.get(name, name): value for name, value in values.items()}


def former_names(name: str, table: Mapping[str, str]) -> tuple[str, ...]:
    """Returns all former names of a name."""
    return tuple(former for former, current in table.items() if current == name)
