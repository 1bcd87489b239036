"""Many requests, answered batch by batch and written shard by shard.

    requests ─▶ threads: read, decode, resize, encode ─▶ device: answer ─▶ shards
               (at most a few batches ahead)              (one batch ahead of the reading)

Batch b of size G asks the inputs [b * G, (b + 1) * G), and a shard holds whole batches. So an input
is always asked beside the same others, and a job that was killed ends with the lines of one that
was not.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from ofa_jax.data.features import Batch, Stream, empty_features, to_features
from ofa_jax.evaluation.batch_decoder import BatchDecoder, DecodedBatch
from ofa_jax.evaluation.eval_sources import EvalBatch, EvalExample, EvalSource, RandomAccessBatches
from ofa_jax.inference import requests
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.requests import DecodePreset, Prediction, Request
from ofa_jax.inference.shards import Shards
from ofa_jax.inference.sources import Source
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.tokenizers.processor import Processor

_BATCHES_AHEAD = 2
_SECONDS_BETWEEN_LINES = 10


@dataclasses.dataclass(frozen=True)
class Asked(EvalExample):
    """A question, and whether its instruction was too long and was cut."""

    cut: bool = False


@dataclasses.dataclass(frozen=True)
class RequestEvalSource:
    """The requests of a source as batches; threads make them ahead.

    Attributes:
      source: of the requests.
      interface: of the model.
      how: all are asked.
      stream: shapes and batch size.
      num_threads: that read, decode and resize.
    """

    source: Source
    interface: Processor
    how: DecodePreset
    stream: Stream
    num_threads: int = 2

    @functools.cached_property
    def num_examples(self) -> int:
        """Of all hosts."""
        return len(self.source)

    def batches(self, numbers: Sequence[int]) -> Iterator[EvalBatch]:
        """See `EvalSource`."""
        options = grain.ReadOptions(
            num_threads=self.num_threads, prefetch_buffer_size=_BATCHES_AHEAD
        )
        size = self.stream.batch_size
        rows = lambda number: range(number * size, (number + 1) * size)  # noqa: E731
        source = RandomAccessBatches(tuple(numbers), rows, self.row)
        yield from grain.MapDataset.source(source).to_iter_dataset(options)

    def row(self, index: int) -> tuple[Batch, Asked | None]:
        """The features of a request; an empty row if there is none, or a bad one."""
        if index >= self.num_examples:
            return empty_features(self.stream, 0), None
        identity, instruction = self.source.location(index), ""
        try:
            entry = self.source[index]
            identity, instruction = entry.id, entry.instruction
            encoded = entry.encoded()
            if encoded is not None and self.stream.image_size is None:
                raise InvalidRecordError("it has an image, but the job's image_size is 0")
            image = None if encoded is None else images.decode(encoded)
            request = Request(entry.instruction, image, entry.region)
            example, view = requests.make(request, self.interface, self.how)
        except (ValueError, OSError) as error:
            reason = str(error)
            return empty_features(self.stream, 0), Asked(
                index,
                getattr(error, "id", identity),
                instruction,
                error=reason[:1].upper() + reason[1:],
            )
        cut = len(example["inputs"]) > self.stream.task_feature_lengths["inputs"]
        rng = np.random.default_rng(0)  # nothing is drawn: all patches are seen
        features = to_features(example, self.stream, 0, rng)
        return features, Asked(index, identity, instruction, box_transform=view, cut=cut)


# ---------------------------------------------------------------------------------- the job


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a host has done.

    Attributes:
      lines: of its finished shards, in this life and before.
      errors: of these lines.
      answered: requests of this life, errors included.
      cut: instructions of this life that were too long.
      seconds: of this life's asking and writing.
    """

    lines: int
    errors: int
    answered: int
    cut: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Asker:
    """What is needed as long as there are requests without an answer.

    Attributes:
      loaded: the model.
      answerer: asks it.
      questions: all requests.
      batch_size: of a batch.
    """

    loaded: LoadedModel
    answerer: BatchDecoder
    questions: EvalSource
    batch_size: int

    def answered(
        self, numbers: Sequence[int]
    ) -> Iterator[tuple[DecodedBatch, Sequence[EvalExample | None]]]:
        """Batches with their answers; the device has the next one while one is read."""
        waiting = None
        for number, features, rows in self.questions.batches(numbers):
            started = self.answerer.start(self.loaded.variables, features, number)
            if waiting is not None:
                yield self.answerer.finish(waiting[0]), waiting[1]
            waiting = started, rows
        if waiting is not None:
            yield self.answerer.finish(waiting[0]), waiting[1]


@dataclasses.dataclass(frozen=True)
class Job:
    """A host's part of a job.

    Attributes:
      asker: None if all hosts have answered everything.
      shards: where answers go; a shard has whole batches.
      host, num_hosts: this host's share.
      say: tells people how far it is.
    """

    asker: Asker | None
    shards: Shards
    host: int = 0
    num_hosts: int = 1
    say: Callable[[str], None] = print

    @property
    def share(self) -> range:
        """This host's shards."""
        return self.shards.share(self.host, self.num_hosts)

    def run(self) -> Counts:
        """Answers what is not answered yet.

        Raises:
          OSError: answers cannot be written; what is written stays.
          ShardError: a shard was changed by hand.
        """
        todo = self.shards.unfinished(self.share) if self.asker is not None else []
        numbers = [number for shard in todo for number in self._batches_of(shard)]
        began = last = time.monotonic()
        answered = cut = 0
        lines: list[dict[str, Any]] = []
        image_files: dict[str, bytes] = {}
        for found, rows in self.asker.answered(numbers) if numbers else ():
            for row, asked in enumerate(rows):
                if asked is None:
                    continue
                shard = asked.index // self.shards.size
                lines.append(self._line(asked, found, row, shard, image_files))
                answered, cut = answered + 1, cut + getattr(asked, "cut", False)
            if lines and len(lines) == len(self.shards.inputs(shard)):
                self.shards.write(shard, lines, image_files)
                lines, image_files = [], {}
            now = time.monotonic()
            if now - last > _SECONDS_BETWEEN_LINES:
                last = now
                self.say(
                    f"In file {shard + 1} of {self.shards.count}: {answered:,} answers, "
                    f"{answered / (now - began):.1f} a second."
                )
        seconds = time.monotonic() - began
        total, errors = self.shards.tally(self.share)
        return Counts(total, errors, answered, cut, seconds)

    def _batches_of(self, shard: int) -> range:
        inputs, size = self.shards.inputs(shard), self.asker.batch_size
        return range(inputs.start // size, -(-inputs.stop // size))

    def _line(
        self,
        asked: EvalExample,
        found: DecodedBatch,
        row: int,
        shard: int,
        image_files: dict[str, bytes],
    ) -> dict[str, Any]:
        """What is written of an answer; an image goes into `images`."""
        line: dict[str, Any] = {"id": asked.id, "instruction": asked.instruction}
        if asked.error is not None:
            return line | {"error": asked.error}
        ids, score = found.best(row)
        if not np.isfinite(score):
            return line | {"error": "The model found no answer that is allowed"}
        prediction = requests.read(ids, score, self.asker.loaded.interface, asked.box_transform)
        line |= _plain(prediction)
        if prediction.image is not None:
            place = asked.index - self.shards.inputs(shard).start
            line["image"] = self.shards.image_name(shard, place)
            image_files[line["image"]] = requests.as_png(prediction.image)
        return line


def _plain(prediction: Prediction) -> dict[str, Any]:
    """As JSON takes it."""
    line: dict[str, Any] = {"answer": prediction.text, "score": prediction.score}
    boxes = prediction.boxes.tolist()
    if prediction.labels:
        line |= {"boxes": boxes, "labels": list(prediction.labels)}
    elif boxes:
        line["box"] = boxes[0]
    if prediction.codes is not None:
        line["codes"] = prediction.codes.tolist()
    return line
