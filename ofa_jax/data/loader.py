"""Which example comes when: a pure function of (seed, step), on any number of hosts.

    task records -> shuffled, endless indices -> mixed by rate -> row r of the stream
    step s of a stream of batch size G holds the rows [s * G, (s + 1) * G)
    data-axis position p of D owns the rows [p * G / D, (p + 1) * G / D) of each step

Grain gives the order, the mixing, the prefetching and the worker processes. Nothing is kept between
steps, so a restart at step s, or on another number of hosts, sees exactly the examples that an
undisturbed run would have seen. A row draws all its randomness from a generator seeded with
(seed, stream, row).
"""

import collections
import dataclasses
import fractions
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from ofa_jax.data.features import Batch, Example, Stream, empty_features, stack, to_features
from ofa_jax.data.records import BadRecord, Record, RecordSource

Preprocess = Callable[[Record, np.random.Generator], Example]
_SKIPPED = "skipped"
_MOST_LOGGED = 20


@dataclasses.dataclass(frozen=True)
class RatedTask:
    """A task as the loader needs it: records, what is made of them, and how often.

    Attributes:
      name: as registered.
      rate: relative to the other tasks of the stream; any positive number.
      records: random access, picklable.
      preprocess: `(record, rng) -> example`, picklable; raises BadRecord.
    """

    name: str
    rate: float
    records: RecordSource
    preprocess: Preprocess


class ByRate(grain.transforms.DatasetSelectionMap):
    """Row -> (task, how many rows of it came before), evenly interleaved and exact at any rates.

    `MapDataset.mix` cuts rates to hundredths of the smallest: 8 to 3 would become 266 to 100.

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
class Rows:
    """The endless rows of one stream, by number."""

    stream: Stream
    tasks: tuple[RatedTask, ...]
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
    stream: Stream, task: RatedTask, task_id: int, index: int, rng: np.random.Generator
) -> tuple[Batch, str | None]:
    """Reads, preprocesses and shapes one record; a bad one becomes an empty row with its reason."""
    try:
        _, example = make_example(task, index, rng)
    except BadRecord as error:
        return empty_features(stream, task_id), f"{task.name}, record {index}: {error}"
    return to_features(example, stream, task_id, rng), None


def make_example(
    task: RatedTask, index: int, rng: np.random.Generator
) -> tuple[Record, Example]:
    """A record and what its task makes of it.

    Raises:
      BadRecord: says what is wrong with it, and where it is stored.
    """
    record = _read(task.records, index)
    try:
        return record, task.preprocess(record, rng)
    except BadRecord as error:
        if (place := getattr(task.records, "place", None)) is None:
            raise
        raise BadRecord(f"{place(index)}: {error}") from error


def _read(records: RecordSource, index: int) -> Record:
    try:
        return records[index]
    except BadRecord:
        raise
    except Exception as error:  # noqa: BLE001  whatever a torn file makes a source raise
        raise BadRecord(f"cannot be read ({type(error).__name__}: {error})") from error


@dataclasses.dataclass(frozen=True)
class Steps:
    """Step -> {stream name: this host's part of the batch}; a grain source."""

    rows: tuple[Rows, ...]
    num_data_shards: int
    data_shards: tuple[int, ...]

    def __len__(self) -> int:
        return sys.maxsize

    def own_rows(self, step: int, size: int) -> list[int]:
        """The rows of a step of a stream, of batch size `size`, that this host feeds."""
        return [
            step * size + offset
            for shard in self.data_shards
            for offset in shard_rows(size, shard, self.num_data_shards)
        ]

    def __getitem__(self, step: int) -> dict[str, Any]:
        result: dict[str, Any] = {_SKIPPED: []}
        for rows in self.rows:
            size = rows.stream.batch_size
            made = [rows[row] for row in self.own_rows(step, size)]
            reasons = [reason for _, reason in made if reason]
            # A host may own few rows, and those may be bad by chance. Asking for the whole step
            # only then costs nothing, and all hosts come to the same verdict.
            if len(reasons) == len(made) and size > 1 and all(
                rows[row][1] for row in range(step * size, (step + 1) * size)
            ):
                raise ValueError(
                    f"Every record of step {step} in stream {rows.stream.name!r} is bad, e.g. "
                    f"{reasons[0]}: the data does not fit the task."
                )
            result[rows.stream.name] = stack(features for features, _ in made)
            result[_SKIPPED] += reasons
        return result


def shard_rows(batch_size: int, shard: int, num_data_shards: int) -> range:
    """The rows of a batch that data-axis position `shard` owns."""
    size = batch_size // num_data_shards
    return range(shard * size, (shard + 1) * size)


class Loader:
    """Batches for training and validation.

    Attributes:
      task_names: `task_ids` in a batch are indices into it.
      skipped_records: task -> how many of its records were bad so far, as far as batches have been
        taken out.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        tasks: Mapping[str, Sequence[RatedTask]],
        seed: int,
        num_data_shards: int = 1,
        data_shards: Sequence[int] = (0,),
        num_threads: int = 2,
        prefetch_steps: int = 4,
        num_workers: int = 0,
        sequential: Mapping[str, Callable[[int], Iterator[Batch]]] | None = None,
    ):
        """Checks the streams against the mesh; reads nothing yet.

        Args:
          streams: one batch of each goes into a step.
          tasks: stream name -> its tasks; streams in `sequential` have none.
          seed: of the run.
          num_data_shards: size of the mesh's data axes.
          data_shards: positions on them whose rows this host feeds.
          num_threads: threads that make batches (per worker process, if there are any).
          prefetch_steps: batches made ahead.
          num_workers: processes that make batches; 0 for threads of this one. Each holds its own
            copy of what records and tasks carry.
          sequential: stream name -> function from the first step to its batches, for tasks that
            have an order of their own (see `seqio_bridge`); exact resuming does not cover them.

        Raises:
          ValueError: a batch that does not divide, an empty mixture, two streams of one name.
        """
        names = [stream.name for stream in streams]
        if len(set(names)) != len(names):
            raise ValueError(f"Two streams have one name ({', '.join(names)}): rename one.")
        for stream in streams:
            if stream.batch_size % num_data_shards:
                raise ValueError(
                    f"Stream {stream.name!r}: batch_size {stream.batch_size} does not divide over "
                    f"the {num_data_shards} data shards of the mesh; choose a multiple of "
                    f"{num_data_shards}."
                )
        self.streams = tuple(streams)
        self.sequential = dict(sequential or {})
        self.task_names = task_names(streams, tasks)
        self.skipped_records: collections.Counter[str] = collections.Counter()
        self._logged: set[str] = set()
        self._shards = (num_data_shards, tuple(data_shards))
        self._threads = (num_threads, prefetch_steps, num_workers)
        self._rows = tuple(
            Rows(
                stream,
                tuple(tasks[stream.name]),
                tuple(self.task_names.index(task.name) for task in tasks[stream.name]),
                seed,
            )
            for stream in streams
            if stream.name not in self.sequential
        )

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Batch]]:
        """This host's part of every step from `start_step` on, without end.

        Yields:
          {stream name: arrays with leading axis batch_size * len(data_shards) / num_data_shards}.
        """
        steps = self._prefetched(self._steps, start_step)
        others = {name: make(start_step) for name, make in self.sequential.items()}
        for batch in steps:
            self._count(batch.pop(_SKIPPED))
            yield batch | {name: next(batches) for name, batches in others.items()}

    def origins(self, step: int) -> dict[str, list[tuple[str, int]]]:
        """Where this host's rows of a step come from, in the order of `batches`.

        Returns:
          Stream name -> (name of the task, index of its record) of every row, also of those whose
          record is bad; without the sequential streams.
        """
        origins = {}
        for rows in self._rows:
            own = self._steps.own_rows(step, rows.stream.batch_size)
            where = [rows.where(row) for row in own]
            origins[rows.stream.name] = [(rows.tasks[task].name, index) for task, index in where]
        return origins

    @property
    def _steps(self) -> Steps:
        return Steps(self._rows, *self._shards)

    def _prefetched(self, source: Any, start: int = 0) -> Iterator[dict[str, Any]]:
        threads, prefetch, workers = self._threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        dataset = grain.MapDataset.source(source)[start:].to_iter_dataset(options)
        if workers:
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
            )
        return iter(dataset)

    def _count(self, reasons: Sequence[str]) -> None:
        for reason in reasons:
            self.skipped_records[reason.partition(",")[0]] += 1
            # Once each, or a single bad record that comes in every epoch would hide all others.
            if reason not in self._logged and len(self._logged) < _MOST_LOGGED:
                self._logged.add(reason)
                logging.warning("Skipped %s", reason)
                if len(self._logged) == _MOST_LOGGED:
                    logging.warning("Further bad records are counted, but no longer named.")

    def validation_batches(
        self, tasks: Mapping[str, Sequence[RatedTask]], num_examples: int
    ) -> Iterator[tuple[str, Batch]]:
        """The first `num_examples` records of each task, always the same examples.

        Args:
          tasks: stream name -> its tasks over the validation split.
          num_examples: per task, or fewer where the split has fewer.

        Yields:
          (stream name, this host's part of a batch); rows that fill up the last batch are empty.
        """
        sources = [
            _ValidationBatches(
                stream,
                tuple(tasks[stream.name]),
                tuple(self.task_names.index(task.name) for task in tasks[stream.name]),
                num_examples,
                *self._shards,
            )
            for stream in self.streams
            if stream.name in tasks
        ]
        for source in sources:
            for batch in self._prefetched(source):
                self._count(batch.pop(_SKIPPED))
                yield source.stream.name, batch


@dataclasses.dataclass(frozen=True)
class _ValidationBatches:
    """Batch number -> this host's part; a grain source."""

    stream: Stream
    tasks: tuple[RatedTask, ...]
    task_ids: tuple[int, ...]
    num_examples: int
    num_data_shards: int
    data_shards: tuple[int, ...]

    def _counts(self) -> list[int]:
        return [min(self.num_examples, len(task.records)) for task in self.tasks]

    def __len__(self) -> int:
        return -(-sum(self._counts()) // self.stream.batch_size)

    def __getitem__(self, number: int) -> dict[str, Any]:
        size = self.stream.batch_size
        made = [
            self._row(number * size + offset)
            for shard in self.data_shards
            for offset in shard_rows(size, shard, self.num_data_shards)
        ]
        batch = stack(features for features, _ in made)
        return batch | {_SKIPPED: [reason for _, reason in made if reason]}

    def _row(self, row: int) -> tuple[Batch, str | None]:
        for task, task_id, count in zip(self.tasks, self.task_ids, self._counts(), strict=True):
            if row < count:
                # The same draws in every evaluation, whatever the run's seed.
                rng = np.random.default_rng([zlib.crc32(task.name.encode()), row])
                return make_row(self.stream, task, task_id, row, rng)
            row -= count
        return empty_features(self.stream, self.task_ids[0]), None


def task_names(
    streams: Sequence[Stream], tasks: Mapping[str, Sequence[RatedTask]]
) -> tuple[str, ...]:
    """The run's tasks in the order of its streams; a sequential stream counts as one task."""
    names: dict[str, None] = {}
    for stream in streams:
        rated = tasks.get(stream.name)
        names.update(dict.fromkeys(
            [task.name for task in rated] if rated else [stream.mixture_or_task_name]
        ))
    return tuple(names)


def _digest(*parts: Any) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())
