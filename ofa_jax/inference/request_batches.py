"""Puts the requests of a job into batches, each of one kind.

    requests ─▶ threads: read, decode, resize, encode ─▶ batches of one kind, shard by shard
                (a few chunks ahead)

Chunk c has the requests [c * G, (c + 1) * G) for batches of G rows, and a shard has whole chunks. A
chunk of one kind is a batch. In a shard of several kinds each kind has a queue: G requests of it
are a batch, and the rest at the end of the shard is one that is not full. So batches depend on the
requests of their shard alone, and a job that was killed and restarted has the same ones, on any
number of hosts.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from ofa_jax.data.features import Features, Stream, empty_features, stack, to_features
from ofa_jax.evaluation.eval_sources import EvalBatch, EvalExample
from ofa_jax.inference import requests
from ofa_jax.inference.entries import clean_text
from ofa_jax.inference.kinds import Kinds
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.requests import Request
from ofa_jax.inference.shards import Shards
from ofa_jax.inference.sources import RequestSource
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils.bad_input import (
    INVALID_RECORD,
    Finding,
    Treatment,
    as_invalid_record,
    collect,
    declare,
    note,
)
from ofa_jax.utils.excerpts import truncate

TRUNCATED = declare(
    "instruction was truncated",
    Treatment.REPLACED,
    "An instruction has more tokens than `infer.source_length`: its end is cut off.",
    __name__,
)

_CHUNKS_AHEAD = 2
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_MAX_MESSAGE = 1000


@dataclasses.dataclass(frozen=True)
class RequestExample(EvalExample):
    """A request, and whether its instruction was truncated to the source length."""

    is_truncated: bool = False


class RequestBatch(NamedTuple):
    """Requests of one kind.

    Attributes:
      batch: features and examples; its number is unique.
      preset: how they are decoded; None if all are errors.
    """

    batch: EvalBatch
    preset: DecodePreset | None


class _Row(NamedTuple):
    """A request: its features and kind, both None if it is an error."""

    example: RequestExample
    features: Features | None
    preset: DecodePreset | None


class _Chunk(NamedTuple):
    """The requests of a chunk: stacked, if they are of one kind, else by row."""

    number: int
    rows: list[_Row]
    stacked: RequestBatch | None


@dataclasses.dataclass(frozen=True)
class RequestBatches:
    """The requests of a source in batches, prepared ahead by threads.

    Attributes:
      source: the requests.
      processor: vocabulary and image sizes of the model.
      kinds: finds the preset of each request.
      batch_size: rows of a batch.
      source_length: tokens to which instructions are padded.
      with_images: whether batches have images at all.
      num_threads: threads that read, decode and resize.
    """

    source: RequestSource
    processor: Processor
    kinds: Kinds
    batch_size: int
    source_length: int
    with_images: bool = True
    num_threads: int = 2

    @functools.cached_property
    def num_examples(self) -> int:
        """The number of requests over all hosts."""
        return len(self.source)

    def batches(self, shards: Shards, numbers: Sequence[int]) -> Iterator[RequestBatch]:
        """Yields the batches of some shards, one shard after the other."""
        chunks = [chunk for number in numbers for chunk in shards.batches(number, self.batch_size)]
        options = grain.ReadOptions(
            num_threads=self.num_threads, prefetch_buffer_size=_CHUNKS_AHEAD
        )
        source = grain.MapDataset.source(_Chunks(tuple(chunks), self))
        prepared = iter(source.to_iter_dataset(options))
        for number in numbers:
            count = len(shards.batches(number, self.batch_size))
            yield from self._of_shard(next(prepared) for _ in range(count))

    def _of_shard(self, chunks: Iterator[_Chunk]) -> Iterator[RequestBatch]:
        """Yields the batches of a shard."""
        queues: dict[DecodePreset, list[_Row]] = {}  # in the order of the first request
        numbers: dict[DecodePreset, int] = {}
        last = None
        for chunk in chunks:
            kinds = _kinds_of(chunk.rows)
            # A request that is an error keeps its row, so that others keep theirs.
            last = kinds[0] if kinds else last
            if not kinds:
                yield RequestBatch(EvalBatch(chunk.number, {}, _examples(chunk.rows)), None)
                continue
            for preset in kinds:
                queues.setdefault(preset, [])
            if chunk.stacked is not None and not queues[kinds[0]]:
                yield self._numbered(chunk.stacked, chunk.number, list(queues).index(kinds[0]))
                continue
            for row in chunk.rows:
                preset = row.preset or kinds[0]
                queue = queues[preset]
                if not queue:
                    numbers[preset] = chunk.number
                queue.append(row)
                if len(queue) == self.batch_size:
                    yield self._batch(preset, queue, numbers[preset], list(queues).index(preset))
                    queues[preset] = []
        for order, (preset, queue) in enumerate(queues.items()):
            if queue:
                yield self._batch(preset, queue, numbers[preset], order)

    def _batch(
        self, preset: DecodePreset, rows: Sequence[_Row], number: int, order: int
    ) -> RequestBatch:
        """Returns rows of one kind as a batch."""
        return self._numbered(self._stack(rows, preset), number, order)

    def _numbered(self, batch: RequestBatch, chunk: int, order: int) -> RequestBatch:
        """Gives a batch its number, from which samples follow.

        Of each kind at most one batch begins in a chunk, so the numbers are unique. Those of the
        first kind are the chunks'.
        """
        num_chunks = -(-self.num_examples // self.batch_size)
        number = chunk + order * num_chunks
        return RequestBatch(batch.batch._replace(number=number), batch.preset)

    def _stack(self, rows: Sequence[_Row], preset: DecodePreset) -> RequestBatch:
        """Stacks rows of one kind; empty ones fill up the batch."""
        stream = self._stream(preset)
        features = [
            empty_features(stream, 0) if row.features is None else row.features for row in rows
        ]
        padding = self.batch_size - len(rows)
        features += [empty_features(stream, 0)] * padding
        batch = EvalBatch(0, stack(features), [*_examples(rows), *[None] * padding])
        return RequestBatch(batch, preset)

    def _stream(self, preset: DecodePreset) -> Stream:
        """Returns the shapes of a batch."""
        return Stream(
            "inputs",
            "infer",
            self.batch_size,
            {"inputs": self.source_length, "targets": 1},
            image_size=preset.image_size if self.with_images else None,
            code_targets=preset.code_grid > 0,
        )

    # ------------------------------------------------------------------------------ a request

    def read_chunk(self, number: int) -> _Chunk:
        """Prepares the requests of a chunk; the last one may have fewer."""
        first = number * self.batch_size
        indices = range(first, min(first + self.batch_size, self.num_examples))
        rows = [self.make_row(index) for index in indices]
        kinds = _kinds_of(rows)
        if len(kinds) != 1:
            return _Chunk(number, rows, None)
        return _Chunk(number, rows, self._stack(rows, kinds[0]))

    def make_row(self, index: int) -> _Row:
        """Prepares a request. Whatever is wrong with it makes it an error, and nothing else."""
        entry_id, instruction = str(index), ""
        with collect() as notes:
            try:
                entry_id = self.source.location(index)
                entry = self.source[index]
                entry_id, instruction = entry.id, entry.instruction
                preset = self.kinds.find(instruction, entry.task)
                image = entry.open_image(self.processor.decode_options)
                if image is not None and not self.with_images:
                    raise InvalidRecordError("it has an image, but the job's image_size is 0")
                request = Request(instruction, image, entry.region)
                example, transform = requests.encode_request(request, self.processor, preset)
                if is_truncated := len(example["inputs"]) > self.source_length:
                    note(
                        TRUNCATED,
                        f"The instruction has {len(example['inputs'])} tokens and was truncated to "
                        f"{self.source_length}",
                    )
                # Inference samples no patches, so nothing is drawn.
                rng = np.random.default_rng(0)
                features = to_features(example, self._stream(preset), 0, rng)
            except Exception as error:  # noqa: BLE001  one input never ends a job
                known = isinstance(error, ValueError | OSError)
                error = error if known else as_invalid_record(error, "it cannot be prepared")
                failed = RequestExample(
                    index,
                    getattr(error, "id", entry_id),
                    clean_text(instruction),
                    error=_sentence(error),
                    reason=getattr(error, "reason", INVALID_RECORD).name,
                    notes=_describe(notes),
                )
                return _Row(failed, None, None)
        made = RequestExample(
            index,
            entry_id,
            instruction,
            box_transform=transform,
            is_truncated=is_truncated,
            notes=_describe(notes),
        )
        return _Row(made, features, preset)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Chunks by position, as a grain source."""

    numbers: tuple[int, ...]
    batches: RequestBatches

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> _Chunk:
        return self.batches.read_chunk(self.numbers[position])


def _kinds_of(rows: Sequence[_Row]) -> list[DecodePreset]:
    """Returns the different kinds of some rows, in the order of their first row."""
    return list(dict.fromkeys(row.preset for row in rows if row.preset is not None))


def _examples(rows: Sequence[_Row]) -> list[EvalExample | None]:
    return [row.example for row in rows]


def _describe(notes: Sequence[Finding]) -> tuple[tuple[str, str], ...]:
    """Returns the findings as the example keeps them."""
    return tuple((finding.reason.name, _tidy(finding.detail)) for finding in notes)


def _sentence(error: Exception) -> str:
    """Returns the sentence of an error line."""
    text = _tidy(str(error)) or type(error).__name__
    return text[:1].upper() + text[1:]


def _tidy(text: str) -> str:
    """Returns a message that is the same in every run, on one line, and can be written."""
    return truncate(clean_text(_ADDRESS.sub("", " ".join(text.split()))), _MAX_MESSAGE)
