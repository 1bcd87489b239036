"""Row r of a stream: which record of which task, and the randomness that it draws from.

    task records -> shuffled, endless indices -> mixed by rate -> row r of the stream

A pure function of (run seed, stream, row): a row draws all its randomness from a generator seeded
with them. Grain gives the order and the mixing.
"""

import dataclasses
import fractions
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from ofa_jax.data.features import Batch, Example, Stream, empty_features, to_features
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.records import InvalidRecordError, Record

Preprocess = Callable[[Record, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class WeightedTask:
    """A task as the loader needs it: records, what is made of them, and how often.

    Attributes:
      name: as registered.
      rate: relative to the other tasks of the stream; any positive number.
      records: random access, picklable.
      preprocess: `(record, rng) -> example`, picklable; raises InvalidRecordError.
    """

    name: str
    rate: float
    records: RecordSource
    preprocess: Preprocess


class ByRate(grain.transforms.DatasetSelectionMap):
    """Row -> (task, how many rows of it came before), evenly interleaved and exact at any rates.

    `MapDataset.mix` cuts rates to hundredths of the smallest: 8 to 3 would become 266 to 100.

    Examples:
      >>> by_rate = ByRate([2.0, 1.0])
      >>> [by_rate[row] for row in range(6)]
      [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]
    """

    def __init__(self, rates: Sequence[float]):
        # Thirds that went through floats become thirds again.
        shares = [
            fractions.Fraction(rate / min(rates)).limit_denominator(1_000_000) for rate in rates
        ]
        common = math.lcm(*(share.denominator for share in shares))
        self._weights = tuple(int(share * common) for share in shares)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[int, int]:
        # Task by task: how many of the rows so far, and of those with this one, are of later tasks.
        before, after, remaining = row, row + 1, sum(self._weights)
        for task, weight in enumerate(self._weights):
            later_before = before * (remaining - weight) // remaining
            later_after = after * (remaining - weight) // remaining
            if after - later_after > before - later_before:
                return task, before - later_before
            before, after, remaining = later_before, later_after, remaining - weight
        raise AssertionError("The last task takes all that is left.")


@dataclasses.dataclass(frozen=True)
class StreamSampler:
    """The endless rows of one stream, by number."""

    stream: Stream
    tasks: tuple[WeightedTask, ...]
    task_ids: tuple[int, ...]
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not self.tasks or any(not len(task.records) for task in self.tasks):
            empty = [task.name for task in self.tasks if not len(task.records)]
            raise ValueError(
                f"Stream {self.stream.name!r}: {self.stream.mixture_or_task_name} has nothing to "
                f"train on ({', '.join(empty) or 'no task'} is empty): check data set and split."
            )
        if any(task.rate <= 0 for task in self.tasks):
            raise ValueError(f"Stream {self.stream.name!r}: every rate must be positive.")

    def _order(self) -> grain.MapDataset:
        """Row -> (index of the task, index of its record). Rebuilt rather than pickled."""
        datasets = []
        for number, task in enumerate(self.tasks):
            indices = grain.MapDataset.range(len(task.records))
            if self.shuffle:
                # Reshuffled in every epoch; each record exactly once in each.
                indices = indices.shuffle(seed=_digest(self.seed, self.stream.name, task.name))
            indices = indices.repeat()
            datasets.append(indices.map(lambda index, number=number: (number, int(index))))
        by_rate = ByRate([task.rate for task in self.tasks])
        return grain.MapDataset.select_from_datasets(datasets, by_rate)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_built"}

    def where(self, row: int) -> tuple[int, int]:
        """The task's index in `tasks` and its record's index."""
        if "_built" not in self.__dict__:
            object.__setattr__(self, "_built", self._order())
        return self.__dict__["_built"][row]

    def generator(self, row: int) -> np.random.Generator:
        """All the randomness of a row."""
        return np.random.default_rng([self.seed, zlib.crc32(self.stream.name.encode()), row])

    def __getitem__(self, row: int) -> tuple[Batch, str | None]:
        """The features of a row; if its record was bad, an empty row and the reason."""
        number, index = self.where(row)
        return make_row(
            self.stream, self.tasks[number], self.task_ids[number], index, self.generator(row)
        )


def make_row(
    stream: Stream, task: WeightedTask, task_id: int, index: int, rng: np.random.Generator
) -> tuple[Batch, str | None]:
    """Reads, preprocesses and shapes one record; a bad one becomes an empty row with its reason."""
    try:
        _, example = make_example(task, index, rng)
    except InvalidRecordError as error:
        return empty_features(stream, task_id), f"{task.name}, record {index}: {error}"
    return to_features(example, stream, task_id, rng), None


def make_example(
    task: WeightedTask, index: int, rng: np.random.Generator
) -> tuple[Record, Example]:
    """A record and what its task makes of it.

    Raises:
      InvalidRecordError: says what is wrong with it, and where it is stored.
    """
    record = _read(task.records, index)
    try:
        return record, task.preprocess(record, rng)
    except InvalidRecordError as error:
        if (location := getattr(task.records, "location", None)) is None:
            raise
        raise InvalidRecordError(f"{location(index)}: {error}") from error


def _read(records: RecordSource, index: int) -> Record:
    try:
        return records[index]
    except InvalidRecordError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a torn file makes a source raise
        raise InvalidRecordError(f"cannot be read ({type(error).__name__}: {error})") from error


def _digest(*parts: Any) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())
