"""Rows of a table: the protocol that every kind of file implements, and several files as one."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Integer

from ofa_jax.data.sources.field_table import Row

__all__ = ["JoinedRows", "Rows"]


class Rows(Protocol):
    """Random access to the rows of a source; picklable, for data workers.

    Attributes:
      name: of the source, for messages.
    """

    @property
    def name(self) -> str:
        """What messages call the source."""

    def __len__(self) -> int: ...

    def folder_of(self, index: int) -> str:
        """Returns the folder that the path of a row's image is relative to."""

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Returns a row; of its fields those named, if that is cheaper.

        Raises:
          InvalidRecordError: it is damaged.
        """

    def location(self, index: int) -> str:
        """Returns where a row is stored, e.g. "data.jsonl, line 7"."""

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the numbers of the rows that have all fields of one of the sets.

        Rows that are not known to lack them count too; None stands for all rows.
        """


@dataclasses.dataclass(frozen=True)
class JoinedRows:
    """The rows of several files, one after the other.

    Attributes:
      parts: the rows of each file.
    """

    parts: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The name of the first file, and how many there are."""
        first = self.parts[0].name
        return first if len(self.parts) == 1 else f"{first} and {len(self.parts) - 1} more"

    @property
    def _starts(self) -> np.ndarray:
        if "_cached" not in self.__dict__:
            starts = np.cumsum([0, *(len(part) for part in self.parts)])
            object.__setattr__(self, "_cached", starts)
        return self.__dict__["_cached"]

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, index: int) -> tuple[Any, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part], index - int(self._starts[part])

    def folder_of(self, index: int) -> str:
        """Returns the folder that the path of a row's image is relative to."""
        part, number = self._find(index)
        return part.folder_of(number)

    def row(self, index: int, fields: Sequence[str] | None = None) -> Row:
        """Returns a row of the file that has it."""
        part, number = self._find(index)
        return part.row(number, fields)

    def location(self, index: int) -> str:
        """Returns the file and the place in it."""
        part, number = self._find(index)
        return part.location(number)

    def select(self, needed: Sequence[Sequence[str]]) -> Integer[np.ndarray, " rows"] | None:
        """Returns the rows that have all fields of one of the sets; None for all."""
        chosen = [part.select(needed) for part in self.parts]
        if all(numbers is None for numbers in chosen):
            return None
        every = [
            np.arange(len(part)) if numbers is None else numbers
            for part, numbers in zip(self.parts, chosen, strict=True)
        ]
        return np.concatenate(
            [numbers + start for numbers, start in zip(every, self._starts[:-1], strict=True)]
        )
