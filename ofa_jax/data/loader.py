"""Which rows a step has, and who feeds them: a function of (seed, step), on any number of hosts.

    step s of a stream of batch size G holds the rows [s * G, (s + 1) * G); see `rows`
    data-axis position p of D owns the rows [p * G / D, (p + 1) * G / D) of each step

Grain gives the prefetching and the worker processes. Nothing is kept between steps, so a restart at
step s, or on another number of hosts, sees exactly the examples that an undisturbed run would have
seen.
"""

import collections
import dataclasses
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from ofa_jax.data.features import Batch, Stream, empty_features, stack
from ofa_jax.data.sampling import StreamSampler, WeightedTask, make_row

_SKIPPED = "skipped"
_MOST_LOGGED = 20


@dataclasses.dataclass(frozen=True)
class StepSource:
    """Step -> {stream name: this host's part of the batch}; a grain source."""

    rows: tuple[StreamSampler, ...]
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
            # A host may own few rows, and those may be bad by chance. EvalBatcher for the whole
            # step only then costs nothing, and all hosts come to the same verdict.
            if (
                len(reasons) == len(made)
                and size > 1
                and all(rows[row][1] for row in range(step * size, (step + 1) * size))
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
        tasks: Mapping[str, Sequence[WeightedTask]],
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
            StreamSampler(
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
    def _steps(self) -> StepSource:
        return StepSource(self._rows, *self._shards)

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
        self, tasks: Mapping[str, Sequence[WeightedTask]], num_examples: int
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
    tasks: tuple[WeightedTask, ...]
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
    streams: Sequence[Stream], tasks: Mapping[str, Sequence[WeightedTask]]
) -> tuple[str, ...]:
    """The run's tasks in the order of its streams; a sequential stream counts as one task."""
    names: dict[str, None] = {}
    for stream in streams:
        rated = tasks.get(stream.name)
        names.update(
            dict.fromkeys([task.name for task in rated] if rated else [stream.mixture_or_task_name])
        )
    return tuple(names)
