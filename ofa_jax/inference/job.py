"""Batch inference: decodes many requests batch by batch and writes them shard by shard.

    requests ─▶ batches of one kind ─▶ device: decode ─▶ shards
                (`request_batches`)    (one batch ahead of the writing)

An input is always in the same batch, and a shard is written when all of its batches are decoded. So
a job that was killed and restarted writes the same lines.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.batch_decoder import BatchDecoder, DecodedBatch
from ofa_jax.evaluation.eval_sources import EvalBatch, EvalSource
from ofa_jax.evaluation.pipeline import decode_batches, row_seeds
from ofa_jax.inference import shards as shard_files
from ofa_jax.inference.image_generation import Reranking
from ofa_jax.inference.kinds import Kinds
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.request_batches import RequestBatches
from ofa_jax.inference.reranking import caption_of
from ofa_jax.inference.shard_writer import JobCounts, ShardWriter
from ofa_jax.inference.shards import LineCounts, Shards
from ofa_jax.utils import progress
from ofa_jax.utils.locks import directory_lock


def print_line(message: str) -> None:
    """Prints a line at once, even into a pipe."""
    print(message, flush=True)


@dataclasses.dataclass(frozen=True)
class JobSummary:
    """What a host has done.

    Attributes:
      lines: lines of its finished shards, from this run and earlier ones.
      errors: how many of these lines are errors.
      decoded: requests of this run, including errors.
      truncated: how many instructions of this run were truncated.
      seconds: time of this run's decoding and writing.
      changed: how many of the lines have warnings.
      repeated: how many of the lines have an id that another line has.
      reasons: name of a reason -> how many requests of this run it concerns.
    """

    lines: int
    errors: int
    decoded: int
    truncated: int
    seconds: float
    changed: int = 0
    repeated: int = 0
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Pipeline(Protocol):
    """A model and all requests of a job."""

    @property
    def loaded(self) -> LoadedModel:
        """The model."""
        ...

    def decode(
        self, shards: Shards, numbers: Sequence[int]
    ) -> Iterator[tuple[EvalBatch, DecodedBatch | None]]:
        """Yields the batches of some shards, in their order, with their hypotheses.

        Those of a batch are None if all its requests are errors.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TaskPipeline:
    """The examples of a seqio task, which are of one kind.

    Attributes:
      loaded: the model.
      decoder: decodes a batch.
      source: all examples.
      batch_size: examples per batch.
      decoding: settings of the decoder.
      reranking: orders the images of captions; None to leave them as they are.
    """

    loaded: LoadedModel
    decoder: BatchDecoder
    source: EvalSource
    batch_size: int
    decoding: DecodingConfig
    reranking: Reranking | None = None

    def decode(
        self, shards: Shards, numbers: Sequence[int]
    ) -> Iterator[tuple[EvalBatch, DecodedBatch | None]]:
        """Yields batches with their hypotheses, see `Pipeline`."""
        batches = [batch for shard in numbers for batch in shards.batches(shard, self.batch_size)]
        examples = self.source.batches(batches)
        for batch, decoded in decode_batches(self.decoder, self.loaded.variables, examples):
            if self.reranking is not None:
                captions = [caption_of(text) for text in _instructions(batch)]
                decoded = self.reranking(decoded, captions)
            yield batch, decoded


@dataclasses.dataclass(frozen=True)
class RequestPipeline:
    """Requests of any kinds.

    Attributes:
      loaded: the model.
      kinds: has the decoder of each kind.
      requests: all requests.
    """

    loaded: LoadedModel
    kinds: Kinds
    requests: RequestBatches

    def decode(
        self, shards: Shards, numbers: Sequence[int]
    ) -> Iterator[tuple[EvalBatch, DecodedBatch | None]]:
        """Yields batches with their hypotheses, see `Pipeline`."""
        waiting: Callable[[], tuple[EvalBatch, DecodedBatch | None]] | None = None
        for batch, preset in self.requests.batches(shards, numbers):
            if preset is None:
                following = functools.partial(_without_hypotheses, batch)
            else:
                decoder = self.kinds.decoder(preset)
                pending = decoder.start(
                    self.loaded.variables, batch.features, batch.number, row_seeds(batch)
                )
                finish = functools.partial(decoder.finish, pending)
                following = functools.partial(self._finish, batch, preset, finish)
            # The device works on the batch while the one before is written.
            if waiting is not None:
                yield waiting()
            waiting = following
        if waiting is not None:
            yield waiting()

    def _finish(
        self, batch: EvalBatch, preset: DecodePreset, finish: Callable[[], DecodedBatch]
    ) -> tuple[EvalBatch, DecodedBatch | None]:
        """Returns a batch with its hypotheses, which a ranker may have ordered."""
        return batch, self.kinds.rerank(preset, finish(), _instructions(batch))


def _instructions(batch: EvalBatch) -> list[str]:
    """Returns the instruction of each row; empty for rows without a request."""
    return [
        "" if example is None or example.error is not None else example.instruction
        for example in batch.examples
    ]


def _without_hypotheses(batch: EvalBatch) -> tuple[EvalBatch, DecodedBatch | None]:
    return batch, None


@dataclasses.dataclass(frozen=True)
class Job:
    """A host's share of a job.

    Attributes:
      pipeline: decodes the requests; None if the job is finished.
      shards: the output files; a shard has whole batches.
      host, num_hosts: this host's share.
      record: what job.json holds; None to leave it alone.
      replaces_record: whether an older or damaged job.json is written again.
      damaged: finished shards that are written again, and what is wrong with them.
      message: what the user should know about an earlier start; empty if nothing.
    """

    pipeline: Pipeline | None
    shards: Shards
    host: int = 0
    num_hosts: int = 1
    record: Mapping[str, Any] | None = None
    replaces_record: bool = False
    damaged: Mapping[int, str] = dataclasses.field(default_factory=dict)
    message: str = ""

    @property
    def share(self) -> range:
        """This host's shards."""
        return self.shards.share(self.host, self.num_hosts)

    @property
    def unfinished(self) -> list[int]:
        """This host's shards that are still to be written."""
        missing = set(self.shards.unfinished(self.share))
        return [shard for shard in self.share if shard in missing or shard in self.damaged]

    def run(self) -> JobSummary:
        """Decodes and writes all unfinished shards of this host.

        Raises:
          OSError: an output file cannot be written; finished files stay.
          ShardError: an output file was changed after it was written.
          LockedError: another process works on these shards.
        """
        start = time.monotonic()
        done = JobCounts()
        if self.pipeline is not None and self.unfinished:
            self.shards.directory.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._begin()
                self._decode(self.pipeline, done)
        seconds = time.monotonic() - start
        counts: LineCounts = self.shards.count_all(self.share)
        return JobSummary(
            counts.lines,
            counts.errors,
            done.decoded,
            done.truncated,
            seconds,
            counts.changed,
            counts.repeated,
            done.reasons,
        )

    def _lock(self) -> contextlib.AbstractContextManager[Any]:
        return lock(self.shards, self.host, self.num_hosts)

    def _begin(self) -> None:
        """Writes job.json and deletes what a killed process has left."""
        if self.record is not None:
            if self.replaces_record:
                shard_files.replace_job_file(self.shards.directory, self.record)
            else:
                shard_files.write_job_file(self.shards.directory, self.record)
        self.shards.delete_temporary(self.share)

    def _decode(self, pipeline: Pipeline, done: JobCounts) -> None:
        """Decodes the unfinished shards."""
        writer = ShardWriter(self.shards, pipeline.loaded.processor, done)
        numbers = self.unfinished
        count = sum(len(self.shards.inputs(number)) for number in numbers)
        with progress.stage("decoding", count, "inputs") as stage:
            for batch, decoded in pipeline.decode(self.shards, numbers):
                writer.add(batch, decoded)
                stage.update(done.decoded)


@contextlib.contextmanager
def lock(shards: Shards, host: int, num_hosts: int) -> Iterator[None]:
    """Holds the lock of a host's share of the output directory, which must exist.

    A job on one host locks the directory. The hosts of a job on several share it, and each locks a
    folder of its own.

    Raises:
      LockedError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(directory_lock(shards.directory, "OUTPUT_DIR", shared=num_hosts > 1))
        if num_hosts > 1:
            own: pathlib.Path = shards.host_folder(host, num_hosts)
            own.mkdir(parents=True, exist_ok=True)
            stack.enter_context(directory_lock(own, "OUTPUT_DIR, or another infer.host"))
        yield
