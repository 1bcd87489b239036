"""Runs a job's shards on Apache Beam, on any of its runners.

    Create(shards) | Reshuffle | WriteShards(job, output)

A worker handles whole shards: it opens the job's input and model once (`Shared`), reads the
records of a shard, and writes its file. Beam may run a shard twice, on two workers at once or after
a failure; both write the same file under names of their own and rename it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from absl import logging

from ofa_jax.jobs.outputs import DAMAGED_JOB_SHARD, DeadLetters, JobOutput

__all__ = ["Job", "ShardWriter", "run_shards"]

_NAMESPACE = "ofa_jax.jobs"


class Job(Protocol):
    """What is done with the records of a shard; picklable."""

    def open(self) -> Any:
        """Opens the input and loads the model; called once per worker process."""

    def write(
        self, opened: Any, numbers: range, path: Any, letters: DeadLetters, details: dict[str, Any]
    ) -> None:
        """Writes the records of some numbers to a file on a disk.

        Args:
          opened: what `open` returned.
          numbers: of the records in the input.
          path: the file.
          letters: takes the records that cannot be used.
          details: `records` is to be set to the number that were written; other JSON may be added.
        """


@dataclasses.dataclass
class _Handle:
    """What a worker opened; `Shared` needs an object that can be referred to weakly."""

    opened: Any


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes a shard in a worker, unless it is finished already; a function for `beam.Map`.

    Attributes:
      job: what is done with the records.
      output: where the shards go.
      shared: Beam's handle of what all threads of a process share.
    """

    job: Job
    output: JobOutput
    shared: Any

    def __call__(self, shard: int) -> tuple[str, int]:
        """Writes a shard; returns "written" or "kept", and the shard."""
        from apache_beam.metrics import Metrics

        if self.output.is_finished(shard):
            Metrics.counter(_NAMESPACE, "shards_kept").inc()
            return "kept", shard
        if self.output.path(shard).exists() and self.output.read_manifest(shard) is not None:
            logging.warning(
                "%s is not as it was written: it is written again (%s).",
                self.output.path(shard),
                DAMAGED_JOB_SHARD.name,
            )
        handle = self.shared.acquire(self._open)
        with self.output.write(shard) as (path, letters, details):
            self.job.write(handle.opened, self.output.records(shard), path, letters, details)
            written, skipped = details["records"], sum(letters.skipped.values())
        Metrics.counter(_NAMESPACE, "shards_written").inc()
        Metrics.counter(_NAMESPACE, "records_written").inc(written)
        Metrics.counter(_NAMESPACE, "dead_letters").inc(skipped)
        return "written", shard

    def _open(self) -> _Handle:
        return _Handle(self.job.open())


def run_shards(job: Job, output: JobOutput, beam_options: Sequence[str]) -> None:
    """Writes all shards that are not finished, and waits for that.

    Args:
      job: what is done with the records.
      output: where the shards go; `begin` was called.
      beam_options: Beam's own, e.g. ["--runner=DirectRunner", "--direct_num_workers=4"].

    Raises:
      ImportError: Beam is not installed.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.shared import Shared

    options = PipelineOptions(list(beam_options))
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(range(output.count))
            # Without it the runner would fuse everything, and one worker would write all shards.
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.Map(ShardWriter(job, output, Shared()))
        )
