"""The order of a stream that makes two examples of every image, one after the other.

The reference implementation makes two examples of a record (a caption and whether it matches, a
region's box and its caption), whose image is decoded, resized and augmented once. In the order of
`sampling.StreamSampler` each task has records of its own, so the two are far apart. Here the rows
2p and 2p + 1 are both examples of the record that the first of them draws:

    1. Pairs of rows are interleaved among the leading tasks by their rates.
    2. The k-th pair of a leading task takes its k-th shuffled record, in both rows.
    3. A task without a counterpart takes two records of its own for its two rows.

As in the other order, a row depends on (run seed, stream, row) alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ofa_jax.preprocessing.objectives import COUNTERPARTS

__all__ = ["Place", "Unit", "find_units"]


class Place(NamedTuple):
    """What a row holds.

    Attributes:
      task: number of the task that makes the example.
      source: number of the task whose record it is.
      record: its number among the records of the source.
    """

    task: int
    source: int
    record: int


class Unit(NamedTuple):
    """What a pair of rows is made of.

    Attributes:
      lead: number of the task that draws the record.
      counterpart: number of the task of the second row; None for a second record of the lead.
      rate: of such pairs of rows.
    """

    lead: int
    counterpart: int | None
    rate: float

    def place(self, order: Sequence[Any], pair: int, second: int) -> Place:
        """Returns the place of a row.

        Args:
          order: number of the draw -> index of the record, without end.
          pair: how many pairs of this unit came before.
          second: 0 or 1, for the second row.
        """
        if self.counterpart is None:
            return Place(self.lead, self.lead, int(order[2 * pair + second]))
        task = self.counterpart if second else self.lead
        return Place(task, self.lead, int(order[pair]))


def find_units(stream: str, rates: Mapping[str, float]) -> list[Unit]:
    """Returns the pairs of rows that a stream consists of.

    Args:
      stream: its name, for errors.
      rates: name -> rate of its tasks, in their order.

    Raises:
      ValueError: no two tasks share images, or a task is not as frequent as those it goes with.
    """
    numbers = {name: number for number, name in enumerate(rates)}
    leads: dict[str, list[str]] = {}
    for lead, counterpart in COUNTERPARTS.items():
        if lead in rates and counterpart in rates:
            leads.setdefault(counterpart, []).append(lead)
    if not leads:
        raise ValueError(
            f"Stream {stream!r}: shared_images is for tasks that make two examples of an image, "
            f"such as {' and '.join(next(iter(COUNTERPARTS.items())))}, and it has none: leave it "
            "out."
        )
    for counterpart, names in leads.items():
        total = sum(rates[name] for name in names)
        if not math.isclose(rates[counterpart], total, rel_tol=1e-6):
            raise ValueError(
                f"Stream {stream!r}: with shared_images {counterpart} is as frequent as "
                f"{' and '.join(names)} together, so its rate must be {total:g}, not "
                f"{rates[counterpart]:g}: change the rates, or leave shared_images out."
            )
    partners = {name: counterpart for counterpart, names in leads.items() for name in names}
    units = []
    for name, rate in rates.items():
        if name in partners:
            units.append(Unit(numbers[name], numbers[partners[name]], rate))
        elif name not in leads:
            units.append(Unit(numbers[name], None, rate / 2))
    return units
