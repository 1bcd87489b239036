"""Maps every row of a stream to a record of one of its tasks, in a deterministic order.

A stream is an endless sequence of rows; a step takes the next `batch_size` of them. What row r
holds depends on (run seed, stream, r) alone:

    1. The records of each task are reshuffled in every epoch, with a seed derived from the run
       seed and the names of stream and task. Those of an endless source are read as they come.
    2. The tasks are interleaved by their rates; the k-th row that a task gets is its k-th shuffled
       record.
    3. The row draws all of its random numbers from a generator of its own, seeded with
       (run seed, stream, r).

No state is carried from row to row, so any host can compute any row, after any restart. Grain
provides the shuffling and the selection.
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

from ofa_jax.data.features import (
    Example,
    Features,
    Stream,
    StreamMismatchError,
    empty_features,
    to_features,
)
from ofa_jax.data.paired_order import Place, Unit, find_units
from ofa_jax.data.sources.base import RecordSource, is_endless
from ofa_jax.preprocessing import image_sharing
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils.bad_input import Finding, as_invalid_record, collect

Preprocess = Callable[[Record, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class WeightedTask:
    """A task of a stream: its records, its preprocessor and its rate.

    Attributes:
      name: in the seqio registry.
      rate: relative to the other tasks of the stream; any positive number.
      records: with random access; picklable.
      preprocess: `(record, rng) -> example`; picklable; may raise InvalidRecordError.
    """

    name: str
    rate: float
    records: RecordSource
    preprocess: Preprocess


class RateInterleaving(grain.transforms.DatasetSelectionMap):
    """Maps a row to (index of its task, number of earlier rows of that task).

    The tasks are interleaved evenly and exactly at their rates. Grain's `MapDataset.mix` is not
    used, as it rounds rates to hundredths of the smallest: 8 to 3 would become 266 to 100.

    Examples:
      >>> interleaving = RateInterleaving([2.0, 1.0])
      >>> [interleaving[row] for row in range(6)]
      [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]
    """

    def __init__(self, rates: Sequence[float]):
        # Recovers exact fractions, such as thirds, from their floats.
        shares = [
            fractions.Fraction(rate / min(rates)).limit_denominator(1_000_000) for rate in rates
        ]
        common = math.lcm(*(share.denominator for share in shares))
        self._weights = tuple(int(share * common) for share in shares)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[int, int]:
        # Goes through the tasks. `before` and `after` count the rows of this task and all later
        # ones, without this row and with it. The row belongs to this task if the later ones have
        # the same number of rows without it and with it.
        before, after, remaining = row, row + 1, sum(self._weights)
        for task, weight in enumerate(self._weights):
            later_before = before * (remaining - weight) // remaining
            later_after = after * (remaining - weight) // remaining
            if after - later_after > before - later_before:
                return task, before - later_before
            before, after, remaining = later_before, later_after, remaining - weight
        raise AssertionError("unreachable: the last task takes all remaining rows")


@dataclasses.dataclass(frozen=True)
class StreamSampler:
    """Computes the rows of one stream by their number; there is no last row.

    Attributes:
      stream: fixes names and shapes.
      tasks: the stream's.
      task_ids: of each task, its index in the run's list of tasks.
      seed: of the run.
      shuffle: whether to shuffle the records of each task.
    """

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
        if self.stream.shared_images:
            self._units()  # raises if its tasks cannot

    def _units(self) -> list[Unit]:
        """Returns what pairs of rows are made of, with `shared_images`."""
        return find_units(self.stream.name, {task.name: task.rate for task in self.tasks})

    def _shuffled(self, task: WeightedTask) -> grain.MapDataset:
        """Returns a dataset that maps the number of a draw of a task to the index of its record."""
        indices = grain.MapDataset.range(len(task.records))
        if self.shuffle and not is_endless(task.records):
            # Each epoch has another order and every record exactly once.
            indices = indices.shuffle(seed=_crc32(self.seed, self.stream.name, task.name))
        return indices.repeat()

    def _build_order(self) -> grain.MapDataset:
        """Returns a dataset that maps a row to (index of the task, index of its record)."""
        datasets = []
        for number, task in enumerate(self.tasks):
            indices = self._shuffled(task)
            datasets.append(indices.map(lambda index, number=number: (number, int(index))))
        interleaving = RateInterleaving([task.rate for task in self.tasks])
        return grain.MapDataset.select_from_datasets(datasets, interleaving)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes rebuild the order instead of receiving it.
        own = ("_order", "_paired")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def place(self, row: int) -> Place:
        """Returns the task that makes a row, and the task and the index of its record."""
        if not self.stream.shared_images:
            number, index = self.locate(row)
            return Place(number, number, index)
        if "_paired" not in self.__dict__:
            units = self._units()
            orders = [self._shuffled(self.tasks[unit.lead]) for unit in units]
            interleaving = RateInterleaving([unit.rate for unit in units])
            object.__setattr__(self, "_paired", (units, orders, interleaving))
        units, orders, interleaving = self.__dict__["_paired"]
        pair, second = divmod(row, 2)
        number, earlier = interleaving[pair]
        return units[number].place(orders[number], earlier, second)

    def locate(self, row: int) -> tuple[int, int]:
        """Returns the index in `tasks` of the task whose record a row holds, and its index there.

        With `shared_images` the record may be that of another task than the row's, see `place`.
        """
        if self.stream.shared_images:
            place = self.place(row)
            return place.source, place.record
        if "_order" not in self.__dict__:
            object.__setattr__(self, "_order", self._build_order())
        return self.__dict__["_order"][row]

    def row_rng(self, row: int) -> np.random.Generator:
        """Returns the generator that a row draws all of its random numbers from."""
        return np.random.default_rng([self.seed, _crc32(self.stream.name), row])

    def __getitem__(self, row: int) -> tuple[Features, list[Finding]]:
        """Returns a row as `features_of_record` does."""
        place = self.place(row)
        task, rng = self.tasks[place.task], self.row_rng(row)
        if not self.stream.shared_images:
            return features_of_record(
                self.stream, task, self.task_ids[place.task], place.record, rng
            )
        task = dataclasses.replace(task, records=self.tasks[place.source].records)
        with image_sharing.drawn_from([self.seed, _crc32(self.stream.name, "image"), row // 2]):
            return features_of_record(
                self.stream, task, self.task_ids[place.task], place.record, rng
            )


def features_of_record(
    stream: Stream, task: WeightedTask, task_id: int, index: int, rng: np.random.Generator
) -> tuple[Features, list[Finding]]:
    """Reads and preprocesses a record and converts the example to features.

    Returns:
      The features and what was dropped or replaced in the record; empty features and also the
      reason why it was skipped if the record is invalid.

    Raises:
      StreamMismatchError: the task does not fit the stream.
    """
    with collect() as findings:
        try:
            _, example = read_example(task, index, rng)
            features = to_features(example, stream, task_id, rng)
        except StreamMismatchError:
            raise
        except Exception as error:  # noqa: BLE001  an example of odd types may raise anything
            invalid = as_invalid_record(error, "its example cannot be used")
            findings.append(Finding(invalid.reason, str(invalid)))
            features = empty_features(stream, task_id)
    where = f"{task.name}, record {index}"
    return features, [
        Finding(finding.reason, f"{where}: {finding.detail}", task.name) for finding in findings
    ]


def read_example(
    task: WeightedTask, index: int, rng: np.random.Generator
) -> tuple[Record, Example]:
    """Reads a record and preprocesses it; returns both the record and the example.

    Raises:
      InvalidRecordError: with what is wrong with the record and where it is stored.
    """
    try:
        record = task.records[index]
    except Exception as error:  # noqa: BLE001  a damaged file may raise anything
        raise as_invalid_record(error, "cannot be read") from error
    try:
        return record, task.preprocess(record, rng)
    except Exception as error:  # noqa: BLE001  a record of odd types may raise anything
        invalid = as_invalid_record(error, "cannot be preprocessed")
        if (location := getattr(task.records, "location", None)) is None:
            raise invalid from error
        raise InvalidRecordError(f"{location(index)}: {invalid}", invalid.reason) from error


def _crc32(*parts: Any) -> int:
    """Returns a hash of the parts that is the same in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode())
