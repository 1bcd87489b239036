"""The examples of a task as batches of features, with what the evaluation records of each row.

    batch b of size G has the examples [b * G, (b + 1) * G)
    data-axis position p of D owns the rows [p * G / D, (p + 1) * G / D) of each batch

Examples are in the order of the records, so each has the same row on any number of hosts. All
randomness of an example follows from (seed, task, index).
"""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from jaxtyping import Int32

from ofa_jax.data.features import (
    Batch,
    Example,
    Features,
    Stream,
    empty_features,
    stack,
    to_features,
)
from ofa_jax.data.loader import shard_rows
from ofa_jax.data.sampling import WeightedTask, read_example
from ofa_jax.evaluation.errors import EvaluationError
from ofa_jax.evaluation.eval_example import (
    EvalExample,
    describe_error,
    make_guarded_row,
    read_references,
    record_id,
)
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.bad_input import collect
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions

PREFIX_FEATURE = "decoder_prefix_tokens"
_MAX_TRIED = 100


class EvalBatch(NamedTuple):
    """A batch of a task.

    Attributes:
      number: position of the batch in the split.
      features: this host's rows.
      examples: the example of each row; None for a row of padding.
    """

    number: int
    features: Batch
    examples: list[EvalExample | None]


class EvalSource(Protocol):
    """The examples of a task in batches."""

    @property
    def num_examples(self) -> int:
        """The number of examples over all hosts."""
        ...

    def batches(self, numbers: Sequence[int]) -> Iterator[EvalBatch]:
        """Yields the batches of these numbers, which must increase."""
        ...


@dataclasses.dataclass(frozen=True)
class EvalBatcher:
    """Converts a task's examples to rows of a batch.

    Attributes:
      stream: shapes and batch size.
      vocabulary: the vocabulary of the instructions.
      references: see `EvalSpec`.
      num_data_shards, data_shards: of the mesh, see `Loader`.
      has_prefix: whether examples have a `target_prefix`.
      decode_options: of the task's images, which boxes are in pixels of.
    """

    stream: Stream
    vocabulary: OFAVocabulary
    references: Callable[[Record], Any]
    num_data_shards: int = 1
    data_shards: tuple[int, ...] = (0,)
    has_prefix: bool = False
    decode_options: DecodeOptions = AS_SEEN

    def example_indices(self, number: int) -> list[int]:
        """Returns the examples of this host's rows of a batch; the last ones may not exist."""
        size = self.stream.batch_size
        return [
            number * size + offset
            for shard in self.data_shards
            for offset in shard_rows(size, shard, self.num_data_shards)
        ]

    def make_row(
        self, index: int, record: Record, example: Example, rng: np.random.Generator
    ) -> tuple[Features, EvalExample]:
        """Returns the features of an example and what the evaluation records of it."""
        features = to_features(example, self.stream, 0, rng)
        if self.has_prefix:
            features[PREFIX_FEATURE] = self._pad_prefix(example.get("target_prefix", ()))
        return features, EvalExample(
            index=index,
            id=record_id(record, index),
            instruction=self.vocabulary.decode(example["inputs"]).strip(),
            references=read_references(self.references, record),
            box_transform=box_transform_of(record, example, self.decode_options),
        )

    def empty_row(self) -> Features:
        """Returns the features of a row without an example."""
        features = empty_features(self.stream, 0)
        return features | ({PREFIX_FEATURE: self._pad_prefix(())} if self.has_prefix else {})

    def _pad_prefix(self, ids: Sequence[int]) -> Int32[np.ndarray, " targets"]:
        """Pads a forced prefix; raises InvalidRecordError if it is too long."""
        length = self.stream.task_feature_lengths["targets"]
        if len(ids) > length:
            raise InvalidRecordError(
                f"its target_prefix has {len(ids)} tokens, but the stream has only {length} "
                "positions for targets"
            )
        return np.append(ids, [OFAVocabulary.pad_id] * (length - len(ids))).astype(np.int32)


def box_transform_of(
    record: Record, example: Example, decode_options: DecodeOptions = AS_SEEN
) -> BoxTransform | None:
    """Returns the transform between an example's image and its record's, decoded with options."""
    image = example.get("image")
    if image is None or not image.size:
        return None
    height, width = image.shape[:2]
    if (region := example.get("view")) is not None:
        x0, y0, x1, y1 = map(float, region)
        return BoxTransform((x0, y0, x1, y1), (width, height))
    stored = record.get("image")
    if isinstance(stored, bytes):
        return BoxTransform.of_whole_image(
            images.read_size(stored, decode_options), (width, height)
        )
    if isinstance(stored, np.ndarray) and stored.ndim == 3:
        return BoxTransform.of_whole_image((stored.shape[1], stored.shape[0]), (width, height))
    return BoxTransform.of_whole_image((width, height), (width, height))


# --------------------------------------------------------------------- records with random access


@dataclasses.dataclass(frozen=True)
class RecordEvalSource:
    """A task over records with random access: threads or processes prepare batches ahead.

    Attributes:
      task: records and preprocessor.
      batcher: converts examples to rows.
      num_examples: how many examples are evaluated, from the first of the split.
      seed: seed of the preprocessors' draws.
      num_threads, num_workers: threads or processes that prepare batches, see `Loader`.
    """

    task: WeightedTask
    batcher: EvalBatcher
    num_examples: int
    seed: int = 0
    num_threads: int = 2
    num_workers: int = 0

    @classmethod
    def open(
        cls,
        task: WeightedTask,
        batcher: EvalBatcher,
        num_examples: int | None = None,
        **options: Any,
    ) -> "RecordEvalSource":
        """Creates the source after reading records until one is valid.

        Args:
          task: records and preprocessor.
          batcher: converts examples to rows.
          num_examples: how many examples are evaluated; None for all.
          **options: other fields of the class.

        Raises:
          ValueError: the split is empty, the first hundred records are all invalid, or they do not
            fit the stream.
        """
        count = len(task.records)
        count = count if num_examples is None else min(num_examples, count)
        if not count:
            raise ValueError(f"Task {task.name}: the split is empty, so there are no examples.")
        source = cls(task, batcher, count, **options)
        reason, tried = "", min(count, _MAX_TRIED)
        for index in range(tried):
            try:
                with collect():
                    record, example = read_example(task, index, source.example_rng(index))
                    batcher = dataclasses.replace(
                        batcher,
                        has_prefix="target_prefix" in example,
                        decode_options=getattr(task.preprocess, "decode_options", AS_SEEN),
                    )
                    batcher.make_row(index, record, example, source.example_rng(index))
            except InvalidRecordError as error:
                reason = reason or str(error)
                continue
            return dataclasses.replace(source, batcher=batcher)
        raise ValueError(
            f"Task {task.name}: none of the first {tried} records can be used, e.g. {reason}: the "
            "data does not fit the task."
        )

    def example_rng(self, index: int) -> np.random.Generator:
        """Returns the generator of all random draws of an example."""
        return np.random.default_rng([self.seed, zlib.crc32(self.task.name.encode()), index])

    def content(self, index: int) -> list[Any]:
        """Returns what the prediction of an example depends on, for its fingerprint."""
        with collect():
            try:
                record, example = read_example(self.task, index, self.example_rng(index))
            except InvalidRecordError:
                return ["invalid record"]
        return [record, example["inputs"], example.get("target_prefix", ())]

    def make_row(self, index: int) -> tuple[Features, EvalExample | None]:
        """Returns a row; it is empty if the example does not exist or its record is invalid."""
        if index >= self.num_examples:
            return self.batcher.empty_row(), None

        def read() -> tuple[Features, EvalExample]:
            rng = self.example_rng(index)
            record, example = read_example(self.task, index, rng)
            return self.batcher.make_row(index, record, example, rng)

        return make_guarded_row(
            index, lambda: self.task.records[index], read, self.batcher.empty_row
        )

    def batches(self, numbers: Sequence[int]) -> Iterator[EvalBatch]:
        """Yields batches, see `EvalSource`."""
        options = grain.ReadOptions(num_threads=self.num_threads, prefetch_buffer_size=2)
        batches = RandomAccessBatches(tuple(numbers), self.batcher.example_indices, self.make_row)
        dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
        if self.num_workers:
            workers = grain.MultiprocessingOptions(self.num_workers, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(workers)
        yield from dataset


@dataclasses.dataclass(frozen=True)
class RandomAccessBatches:
    """Batches by position, as a grain source; picklable if its functions are.

    Attributes:
      numbers: the batch numbers, by position.
      example_indices: batch number -> the examples in it.
      make_row: example index -> its row.
    """

    numbers: tuple[int, ...]
    example_indices: Callable[[int], Sequence[int]]
    make_row: Callable[[int], tuple[Features, EvalExample | None]]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> EvalBatch:
        number = self.numbers[position]
        return _collate(number, [self.make_row(index) for index in self.example_indices(number)])


def _collate(number: int, rows: Sequence[tuple[Features, EvalExample | None]]) -> EvalBatch:
    """Stacks rows to a batch."""
    return EvalBatch(
        number, stack(features for features, _ in rows), [example for _, example in rows]
    )


# -------------------------------------------------------------------------- sequential examples


@dataclasses.dataclass(frozen=True)
class SeqioEvalSource:
    """A task with seqio's own preprocessors, whose examples can only be read in sequence.

    Each host iterates over all of them and keeps its rows.

    Attributes:
      examples: returns an iterator over the examples of the split, the same ones in each call.
      batcher: converts examples to rows; its `references` gets the example.
      num_examples: how many examples are evaluated; the split has at least as many.
    """

    examples: Callable[[], Iterator[Example]]
    batcher: EvalBatcher
    num_examples: int

    def batches(self, numbers: Sequence[int]) -> Iterator[EvalBatch]:
        """Yields batches, see `EvalSource`."""
        size = self.batcher.stream.batch_size
        examples, position = self.examples(), 0
        for number in numbers:
            start = number * size
            try:
                chunk = list(itertools.islice(examples, start - position, start - position + size))
            except Exception as error:  # noqa: BLE001  preprocessors of tf.data raise anything
                raise EvaluationError(
                    f"The examples {start} to {start + size - 1} cannot be read "
                    f"({describe_error(error)}): correct the data or the task. What is finished "
                    "is kept."
                ) from error
            position = start + len(chunk)
            rows = [
                self._make_row(index, chunk, start)
                for index in self.batcher.example_indices(number)
            ]
            yield _collate(number, rows)

    def _make_row(
        self, index: int, chunk: Sequence[Example], start: int
    ) -> tuple[Features, EvalExample | None]:
        """Returns a row of the batch of `chunk`, whose first example has the index `start`."""
        if index >= min(self.num_examples, start + len(chunk)):
            return self.batcher.empty_row(), None
        example = chunk[index - start]
        rng = np.random.default_rng(0)  # evaluation samples no patches, so nothing is drawn
        return make_guarded_row(
            index,
            lambda: example,
            lambda: self.batcher.make_row(index, example, example, rng),
            self.batcher.empty_row,
        )
