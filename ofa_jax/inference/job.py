"""Batch inference: decodes many requests batch by batch and writes them shard by shard.

    requests ─▶ threads: read, decode, resize, encode ─▶ device: decode ─▶ shards
               (at most a few batches ahead)              (one batch ahead of the writing)

Batch b of size G has the inputs [b * G, (b + 1) * G), and a shard has whole batches. So an input is
always in the same batch, and a job that was killed and restarted writes the same lines.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from ofa_jax.data.features import Features, Stream, empty_features, to_features
from ofa_jax.evaluation.batch_decoder import BatchDecoder, DecodedBatch
from ofa_jax.evaluation.eval_sources import (
    EvalBatch,
    EvalExample,
    EvalSource,
    RandomAccessBatches,
)
from ofa_jax.evaluation.pipeline import decode_batches
from ofa_jax.inference import requests
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.predictions import Prediction, parse_prediction, to_png
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.requests import Request
from ofa_jax.inference.shards import Shards
from ofa_jax.inference.sources import RequestSource
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.tokenizers.processor import Processor

_BATCHES_AHEAD = 2
_SECONDS_BETWEEN_LOGS = 10


@dataclasses.dataclass(frozen=True)
class RequestExample(EvalExample):
    """A request, and whether its instruction was truncated to the source length."""

    is_truncated: bool = False


@dataclasses.dataclass(frozen=True)
class RequestEvalSource:
    """The requests of a source as batches, prepared ahead by threads.

    Attributes:
      source: the requests.
      processor: vocabulary and image sizes of the model.
      preset: how images are preprocessed.
      stream: shapes and batch size.
      num_threads: threads that read, decode and resize.
    """

    source: RequestSource
    processor: Processor
    preset: DecodePreset
    stream: Stream
    num_threads: int = 2

    @functools.cached_property
    def num_examples(self) -> int:
        """The number of requests over all hosts."""
        return len(self.source)

    def batches(self, numbers: Sequence[int]) -> Iterator[EvalBatch]:
        """Yields batches, see `EvalSource`."""
        options = grain.ReadOptions(
            num_threads=self.num_threads, prefetch_buffer_size=_BATCHES_AHEAD
        )
        batches = RandomAccessBatches(tuple(numbers), self._example_indices, self.make_row)
        yield from grain.MapDataset.source(batches).to_iter_dataset(options)

    def _example_indices(self, number: int) -> range:
        """Returns the requests of a batch; the last ones may not exist."""
        size = self.stream.batch_size
        return range(number * size, (number + 1) * size)

    def make_row(self, index: int) -> tuple[Features, RequestExample | None]:
        """Returns a row; it is empty if the request does not exist or is invalid."""
        if index >= self.num_examples:
            return empty_features(self.stream, 0), None
        identity, instruction = self.source.location(index), ""
        try:
            entry = self.source[index]
            identity, instruction = entry.id, entry.instruction
            encoded = entry.read_image()
            if encoded is not None and self.stream.image_size is None:
                raise InvalidRecordError("it has an image, but the job's image_size is 0")
            image = None if encoded is None else images.decode(encoded)
            request = Request(entry.instruction, image, entry.region)
            example, transform = requests.encode_request(request, self.processor, self.preset)
        except (ValueError, OSError) as error:
            reason = str(error)
            return empty_features(self.stream, 0), RequestExample(
                index,
                getattr(error, "id", identity),
                instruction,
                error=reason[:1].upper() + reason[1:],
            )
        is_truncated = len(example["inputs"]) > self.stream.task_feature_lengths["inputs"]
        rng = np.random.default_rng(0)  # inference samples no patches, so nothing is drawn
        features = to_features(example, self.stream, 0, rng)
        return features, RequestExample(
            index, identity, instruction, box_transform=transform, is_truncated=is_truncated
        )


# ---------------------------------------------------------------------------------- the job


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
    """

    lines: int
    errors: int
    decoded: int
    truncated: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class RequestPipeline:
    """A model and all requests of a job.

    Attributes:
      loaded: the model.
      decoder: decodes a batch.
      source: all requests.
      batch_size: requests per batch.
    """

    loaded: LoadedModel
    decoder: BatchDecoder
    source: EvalSource
    batch_size: int

    def decode(self, numbers: Sequence[int]) -> Iterator[tuple[EvalBatch, DecodedBatch]]:
        """Yields batches with their hypotheses."""
        return decode_batches(self.decoder, self.loaded.variables, self.source.batches(numbers))


@dataclasses.dataclass(frozen=True)
class Job:
    """A host's share of a job.

    Attributes:
      pipeline: decodes the requests; None if the job is finished on all hosts.
      shards: the output files; a shard has whole batches.
      host, num_hosts: this host's share.
      log: reports the progress.
    """

    pipeline: RequestPipeline | None
    shards: Shards
    host: int = 0
    num_hosts: int = 1
    log: Callable[[str], None] = print_line

    @property
    def share(self) -> range:
        """This host's shards."""
        return self.shards.share(self.host, self.num_hosts)

    def run(self) -> JobSummary:
        """Decodes and writes all unfinished shards of this host.

        Raises:
          OSError: an output file cannot be written; finished files stay.
          ShardError: an output file was changed after it was written.
        """
        start = time.monotonic()
        decoded = truncated = 0
        if self.pipeline is not None:
            decoded, truncated = self._decode(self.pipeline, start)
        seconds = time.monotonic() - start
        lines, errors = self.shards.count_lines(self.share)
        return JobSummary(lines, errors, decoded, truncated, seconds)

    def _decode(self, pipeline: RequestPipeline, start: float) -> tuple[int, int]:
        """Decodes the unfinished shards; returns how many requests, and how many truncated."""
        todo = self.shards.unfinished(self.share)
        numbers = [
            number for shard in todo for number in self._batches_of(shard, pipeline.batch_size)
        ]
        writer = _ShardWriter(self.shards, pipeline.loaded.processor)
        last_log = start
        for batch, decoded in pipeline.decode(numbers) if numbers else ():
            writer.add(batch, decoded)
            now = time.monotonic()
            if now - last_log > _SECONDS_BETWEEN_LOGS:
                last_log = now
                self.log(
                    f"File {writer.shard + 1} of {self.shards.count}: {writer.decoded:,} "
                    f"predictions, {writer.decoded / (now - start):.1f} per second."
                )
        return writer.decoded, writer.truncated

    def _batches_of(self, shard: int, batch_size: int) -> range:
        """Returns the batches of a shard."""
        inputs = self.shards.inputs(shard)
        return range(inputs.start // batch_size, -(-inputs.stop // batch_size))


class _ShardWriter:
    """Collects the lines of a shard and writes them when they are complete.

    Attributes:
      shard: the shard of the last batch.
      decoded: requests so far, including errors.
      truncated: how many of their instructions were truncated.
    """

    def __init__(self, shards: Shards, processor: Processor):
        self.shard = self.decoded = self.truncated = 0
        self._shards = shards
        self._processor = processor
        self._lines: list[dict[str, Any]] = []
        self._images: dict[str, bytes] = {}

    def add(self, batch: EvalBatch, decoded: DecodedBatch) -> None:
        """Adds the predictions of a batch, all of one shard."""
        for row, example in enumerate(batch.examples):
            if example is None:
                continue
            self.shard = example.index // self._shards.size
            self._lines.append(self._line(example, decoded, row))
            self.decoded += 1
            self.truncated += getattr(example, "is_truncated", False)
        if self._lines and len(self._lines) == len(self._shards.inputs(self.shard)):
            self._shards.write(self.shard, self._lines, self._images)
            self._lines, self._images = [], {}

    def _line(self, example: EvalExample, decoded: DecodedBatch, row: int) -> dict[str, Any]:
        """Returns the line of a request; a generated image is collected beside it."""
        line: dict[str, Any] = {"id": example.id, "instruction": example.instruction}
        if example.error is not None:
            return line | {"error": example.error}
        ids, score = decoded.best(row)
        if not np.isfinite(score):
            return line | {"error": "The decoder found no output that the constraints allow"}
        prediction = parse_prediction(ids, score, self._processor, example.box_transform)
        line |= _to_json(prediction)
        if prediction.image is not None:
            offset = example.index - self._shards.inputs(self.shard).start
            line["image"] = self._shards.image_name(self.shard, offset)
            self._images[line["image"]] = to_png(prediction.image)
        return line


def _to_json(prediction: Prediction) -> dict[str, Any]:
    """Returns the fields of a prediction's line."""
    line: dict[str, Any] = {"answer": prediction.text, "score": prediction.score}
    boxes = prediction.boxes.tolist()
    if prediction.labels:
        line |= {"boxes": boxes, "labels": list(prediction.labels)}
    elif boxes:
        line["box"] = boxes[0]
    if prediction.codes is not None:
        line["codes"] = prediction.codes.tolist()
    return line
