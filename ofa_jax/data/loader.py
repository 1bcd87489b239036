"""Makes the batches of training and validation, on one host or on many.

Training is deterministic: the batch of a step depends on (seed, step) alone.

    step s of a stream with batch size G takes the rows [s * G, (s + 1) * G), see `sampling`
    position p of the D on the mesh's data axes takes the rows [p * G / D, (p + 1) * G / D) of these

No state is kept between steps, so a run that restarts at step s, on the same or another number of
hosts, sees the same examples as a run without interruption. Grain provides the prefetching and the
worker processes.
"""

import collections
import contextlib
import dataclasses
import signal
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from ofa_jax.data.features import Batch, Features, Stream, empty_features, stack
from ofa_jax.data.sampling import StreamSampler, WeightedTask, features_of_record
from ofa_jax.preprocessing import image_sharing
from ofa_jax.utils.bad_input import Finding, collect

_FINDINGS = "findings"
"""Key, beside those of the streams or features, of the findings about their records."""
_MAX_LOGGED = 20


@dataclasses.dataclass(frozen=True)
class StepSource:
    """A grain source that maps a step to {stream name: this host's part of the batch}.

    Attributes:
      samplers: one for each stream.
      num_data_shards: size of the mesh's data axes.
      data_shards: positions on them whose rows this host makes.
    """

    samplers: tuple[StreamSampler, ...]
    num_data_shards: int
    data_shards: tuple[int, ...]

    def __len__(self) -> int:
        return sys.maxsize

    def host_rows(self, step: int, batch_size: int) -> list[int]:
        """Returns the rows that this host makes for a step of a stream."""
        return [
            step * batch_size + offset
            for shard in self.data_shards
            for offset in shard_rows(batch_size, shard, self.num_data_shards)
        ]

    def __getitem__(self, step: int) -> dict[str, Any]:
        batches: dict[str, Any] = {_FINDINGS: []}
        for sampler in self.samplers:
            batch, findings = self._make_batch(sampler, step)
            batches[sampler.stream.name] = batch
            batches[_FINDINGS] += findings
        return batches

    def _make_batch(self, sampler: StreamSampler, step: int) -> tuple[Batch, list[Finding]]:
        """Returns this host's part of a stream's batch, and the findings about its records.

        Raises:
          ValueError: every record of the whole batch is invalid.
        """
        size = sampler.stream.batch_size
        with image_sharing.kept_images():
            rows = [sampler[row] for row in self.host_rows(step, size)]
        skipped = [finding for _, found in rows for finding in found if finding.is_skipped]
        # The few rows of one host may all be invalid by chance, so the rows of all hosts decide,
        # and every host comes to the same result. They are rarely read, so this costs nothing.
        if (
            len(skipped) == len(rows)
            and size > 1
            and all(_is_skipped(sampler[row]) for row in range(step * size, (step + 1) * size))
        ):
            raise ValueError(
                f"Every record of step {step} in stream {sampler.stream.name!r} is invalid, e.g. "
                f"{skipped[0].detail}: the data does not fit the task."
            )
        return stack(features for features, _ in rows), _findings(rows)


class LoaderError(RuntimeError):
    """A worker process died: the batches that it was to make are missing."""


def _ignore_interrupts(worker: int, count: int) -> None:
    """Lets a worker process ignore Ctrl-C, which the main process handles and then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shard_rows(batch_size: int, shard: int, num_data_shards: int) -> range:
    """Returns the rows of a batch that position `shard` of the mesh's data axes takes."""
    size = batch_size // num_data_shards
    return range(shard * size, (shard + 1) * size)


class Loader:
    """Makes batches for training and validation.

    Attributes:
      streams: of the run.
      sequential: see `__init__`.
      task_names: of all tasks of the run; the `task_ids` of a batch are indices into it.
      skipped_records: task -> number of its invalid records in the batches yielded so far.
      findings: (task, name of the reason) -> number of records that were skipped, or of parts that
        were dropped or replaced, in the batches yielded so far.
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
        """Checks the streams against the mesh; reads no records.

        Args:
          streams: every step takes one batch of each.
          tasks: stream name -> its tasks; streams in `sequential` have none.
          seed: of the run.
          num_data_shards: size of the mesh's data axes.
          data_shards: positions on them whose rows this host makes.
          num_threads: threads that make batches, in each worker process if there are any.
          prefetch_steps: number of batches made ahead.
          num_workers: processes that make batches; 0 for threads of this process. Each has its own
            copy of the tasks and their record sources.
          sequential: stream name -> function from the first step to an iterator of batches, for
            tasks with an order of their own (see `seqio_bridge`); exact resuming does not cover
            these streams.

        Raises:
          ValueError: a batch size is not divisible by the data shards, a mixture is empty, or two
            streams have the same name.
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
            _check_shared_images(stream, num_data_shards, stream.name in (sequential or {}))
        self.streams = tuple(streams)
        self.sequential = dict(sequential or {})
        self.task_names = task_names(streams, tasks)
        self.skipped_records: collections.Counter[str] = collections.Counter()
        self.findings: collections.Counter[tuple[str, str]] = collections.Counter()
        self._logged: set[str] = set()
        self._shards = (num_data_shards, tuple(data_shards))
        self._threads = (num_threads, prefetch_steps, num_workers)
        self._samplers = tuple(
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
        """Yields this host's part of every step from `start_step` on, without end.

        Yields:
          {stream name: arrays with leading axis batch_size * len(data_shards) / num_data_shards}.
        """
        others = {name: make(start_step) for name, make in self.sequential.items()}
        with contextlib.closing(self._prefetched(self._steps, start_step)) as steps:
            for batch in steps:
                self._count(batch.pop(_FINDINGS))
                for name, batches in others.items():
                    with collect() as findings:
                        batch[name] = next(batches)
                    task = next(s.mixture_or_task_name for s in self.streams if s.name == name)
                    self._count([dataclasses.replace(found, task=task) for found in findings])
                yield batch

    def record_ids(self, step: int) -> dict[str, list[tuple[str, int]]]:
        """Returns which records this host's rows of a step hold, in the order of `batches`.

        Returns:
          Stream name -> (name of the task, index of its record) for every row, including rows with
          an invalid record; without the sequential streams.
        """
        record_ids = {}
        for sampler in self._samplers:
            rows = self._steps.host_rows(step, sampler.stream.batch_size)
            located = [sampler.locate(row) for row in rows]
            record_ids[sampler.stream.name] = [
                (sampler.tasks[task].name, index) for task, index in located
            ]
        return record_ids

    @property
    def _steps(self) -> StepSource:
        return StepSource(self._samplers, *self._shards)

    def _prefetched(self, source: Any, start: int = 0) -> Generator[dict[str, Any]]:
        """Iterates over a grain source with threads, or with worker processes.

        Raises:
          LoaderError: a worker process died.
        """
        threads, prefetch, workers = self._threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        dataset = grain.MapDataset.source(source)[start:].to_iter_dataset(options)
        if workers:
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
                worker_init_fn=_ignore_interrupts,
            )
        with contextlib.closing(iter(dataset)) as batches:
            try:
                yield from batches
            except RuntimeError as error:
                if "process was terminated" not in str(error):
                    raise
                raise LoaderError(
                    f"A process that makes batches has ended ({error}) Most often memory ran out: "
                    "lower train.num_workers, and start the run again, which resumes."
                ) from error

    def _count(self, findings: Sequence[Finding]) -> None:
        """Counts findings by task and reason, and logs the first few."""
        for finding in findings:
            self.findings[finding.task, finding.reason.name] += 1
            if finding.is_skipped:
                self.skipped_records[finding.task] += 1
            # Each once; else a single record that recurs in every epoch would use up the limit.
            if finding.detail not in self._logged and len(self._logged) < _MAX_LOGGED:
                self._logged.add(finding.detail)
                verb = "Skipped" if finding.is_skipped else "Changed"
                logging.warning("%s %s (%s)", verb, finding.detail, finding.reason.name)
                if len(self._logged) == _MAX_LOGGED:
                    logging.warning("Further invalid records are counted, but no longer logged.")

    def validation_batches(
        self, tasks: Mapping[str, Sequence[WeightedTask]], num_examples: int
    ) -> Iterator[tuple[str, Batch]]:
        """Yields the first `num_examples` records of each task; the examples are always the same.

        Args:
          tasks: stream name -> its tasks over the validation split.
          num_examples: of each task; all of them if the split has fewer.

        Yields:
          (stream name, this host's part of a batch); the last batch is filled up with empty rows.
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
                self._count(batch.pop(_FINDINGS))
                yield source.stream.name, batch


@dataclasses.dataclass(frozen=True)
class _ValidationBatches:
    """A grain source that maps the number of a validation batch to this host's part of it."""

    stream: Stream
    tasks: tuple[WeightedTask, ...]
    task_ids: tuple[int, ...]
    num_examples: int
    num_data_shards: int
    data_shards: tuple[int, ...]

    def _counts(self) -> list[int]:
        """Returns the number of examples of each task."""
        return [min(self.num_examples, len(task.records)) for task in self.tasks]

    def __len__(self) -> int:
        return -(-sum(self._counts()) // self.stream.batch_size)

    def __getitem__(self, number: int) -> dict[str, Any]:
        size = self.stream.batch_size
        rows = [
            self._row(number * size + offset)
            for shard in self.data_shards
            for offset in shard_rows(size, shard, self.num_data_shards)
        ]
        batch = stack(features for features, _ in rows)
        return batch | {_FINDINGS: _findings(rows)}

    def _row(self, row: int) -> tuple[Features, list[Finding]]:
        """Returns a row as `features_of_record` does; empty features behind the last record."""
        for task, task_id, count in zip(self.tasks, self.task_ids, self._counts(), strict=True):
            if row < count:
                # Independent of the run's seed, so that all runs validate on the same examples.
                rng = np.random.default_rng([zlib.crc32(task.name.encode()), row])
                return features_of_record(self.stream, task, task_id, row, rng)
            row -= count
        return empty_features(self.stream, self.task_ids[0]), []


def _check_shared_images(stream: Stream, num_data_shards: int, is_sequential: bool) -> None:
    """Raises ValueError if a stream cannot make two examples of each image."""
    if not stream.shared_images:
        return
    if is_sequential:
        raise ValueError(
            f"Stream {stream.name!r}: its tasks have an order of their own, so shared_images is of "
            "no use: leave it out."
        )
    if stream.batch_size // num_data_shards % 2:
        raise ValueError(
            f"Stream {stream.name!r}: with shared_images each of the {num_data_shards} data shards "
            f"takes an even number of rows, and batch_size {stream.batch_size} gives it "
            f"{stream.batch_size // num_data_shards}: choose a multiple of {2 * num_data_shards}."
        )


def _is_skipped(row: tuple[Features, Sequence[Finding]]) -> bool:
    """Returns whether the record of a row was skipped."""
    return any(finding.is_skipped for finding in row[1])


def _findings(rows: Sequence[tuple[Features, Sequence[Finding]]]) -> list[Finding]:
    """Returns all findings about the records of rows."""
    return [finding for _, found in rows for finding in found]


def task_names(
    streams: Sequence[Stream], tasks: Mapping[str, Sequence[WeightedTask]]
) -> tuple[str, ...]:
    """Returns the names of the run's tasks, in the order of its streams.

    A stream without weighted tasks (a sequential one) counts as one task.
    """
    names: dict[str, None] = {}
    for stream in streams:
        weighted = tasks.get(stream.name)
        names.update(
            dict.fromkeys(
                [task.name for task in weighted] if weighted else [stream.mixture_or_task_name]
            )
        )
    return tuple(names)
