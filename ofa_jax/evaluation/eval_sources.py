"""The examples of a task as questions: batches to ask, and what is to be known of each row.

    batch b of size G asks the examples [b * G, (b + 1) * G)
    data-axis position p of D owns the rows [p * G / D, (p + 1) * G / D) of each batch

The order is that of the records, so an example has its row on any number of hosts. All randomness
of an example follows from (seed, task, index).
"""

import dataclasses
import io
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from PIL import Image

from ofa_jax.data.features import Batch, Example, Stream, empty_features, stack, to_features
from ofa_jax.data.loader import shard_rows
from ofa_jax.data.sampling import WeightedTask, make_example
from ofa_jax.evaluation.postprocess import View
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

PREFIX = "decoder_prefix_tokens"


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """What is known of an example besides its features.

    Attributes:
      index: its number in the split.
      id: of its record; the number where the record has none.
      instruction: as text.
      references: what an answer is compared with.
      view: of the model's image on the stored one; None without an image.
      error: why it cannot be asked; None if it can.
    """

    index: int
    id: str
    instruction: str = ""
    references: Any = None
    view: View | None = None
    error: str | None = None


Rows = tuple[int, Batch, list[EvalExample | None]]
"""Number of a batch, this host's rows, and their questions; None for a row that only fills up."""


class EvalSource(Protocol):
    """The examples of a task."""

    num_examples: int

    def batches(self, numbers: Sequence[int]) -> Iterator[Rows]:
        """The batches of these numbers, which increase."""


@dataclasses.dataclass(frozen=True)
class EvalBatcher:
    """How a task's examples become rows, wherever they come from.

    Attributes:
      stream: shapes and batch size.
      vocabulary: that instructions are written in.
      references: see `EvalSpec`.
      num_data_shards, data_shards: of the mesh, see `Loader`.
      has_prefix: examples have a `target_prefix`.
    """

    stream: Stream
    vocabulary: OFAVocabulary
    references: Callable[[Record], Any]
    num_data_shards: int = 1
    data_shards: tuple[int, ...] = (0,)
    has_prefix: bool = False

    def rows(self, number: int) -> list[int]:
        """The examples that this host asks in a batch; the last ones may not exist."""
        size = self.stream.batch_size
        return [
            number * size + offset
            for shard in self.data_shards
            for offset in shard_rows(size, shard, self.num_data_shards)
        ]

    def row(
        self, index: int, record: Record, example: Example, rng: np.random.Generator
    ) -> tuple[Batch, EvalExample]:
        """Features and question of an example."""
        features = to_features(example, self.stream, 0, rng)
        if self.has_prefix:
            features[PREFIX] = self._prefix(example.get("target_prefix", ()))
        return features, EvalExample(
            index=index,
            id=_id(record, index),
            instruction=self.vocabulary.decode(example["inputs"]).strip(),
            references=self.references(record),
            view=_view(record, example),
        )

    def empty(self) -> Batch:
        """A row that asks nothing."""
        features = empty_features(self.stream, 0)
        return features | ({PREFIX: self._prefix(())} if self.has_prefix else {})

    def _prefix(self, ids: Sequence[int]) -> np.ndarray:
        longest = self.stream.task_feature_lengths["targets"]
        if len(ids) > longest:
            raise InvalidRecordError(
                f"its answer begins with {len(ids)} given tokens, which are more than the "
                f"{longest} that the stream has for targets"
            )
        return np.append(ids, [OFAVocabulary.pad_id] * (longest - len(ids))).astype(np.int32)


def _id(record: Record, index: int) -> str:
    known = record.get("id")
    known = known.decode("utf-8", "replace") if isinstance(known, bytes) else known
    return str(index) if known is None or known == "" else str(known)


def _view(record: Record, example: Example) -> View | None:
    image = example.get("image")
    if image is None or not image.size:
        return None
    height, width = image.shape[:2]
    if (region := example.get("view")) is not None:
        return View(tuple(map(float, region)), (width, height))
    stored = record.get("image")
    if isinstance(stored, bytes):
        with Image.open(io.BytesIO(stored)) as opened:  # reads the header only
            return View.whole(opened.size, (width, height))
    if isinstance(stored, np.ndarray) and stored.ndim == 3:
        return View.whole((stored.shape[1], stored.shape[0]), (width, height))
    return View.whole((width, height), (width, height))


# --------------------------------------------------------------------- records with random access


@dataclasses.dataclass(frozen=True)
class RecordEvalSource:
    """Of a task over records with random access: threads or processes make batches ahead.

    Attributes:
      task: records and preprocessor.
      asking: how rows are made.
      num_examples: the first ones of the split are asked.
      seed: of what preprocessors draw.
      num_threads, num_workers: that make batches, see `Loader`.
    """

    task: WeightedTask
    asking: EvalBatcher
    num_examples: int
    seed: int = 0
    num_threads: int = 2
    num_workers: int = 0

    @classmethod
    def of(
        cls, task: WeightedTask, asking: EvalBatcher, num_examples: int | None = None, **others: Any
    ) -> "RecordEvalSource":
        """Of the first examples (None for all); looks at them until one is good.

        Raises:
          ValueError: there are none, or the first hundred are all bad; or they do not fit the
            stream.
        """
        count = len(task.records)
        count = count if num_examples is None else min(num_examples, count)
        if not count:
            raise ValueError(
                f"Task {task.name}: there is nothing to evaluate, for the split is empty."
            )
        made = cls(task, asking, count, **others)
        reason, tried = "", min(count, 100)
        for index in range(tried):
            try:
                record, example = make_example(task, index, made.generator(index))
                asking = dataclasses.replace(asking, has_prefix="target_prefix" in example)
                asking.row(index, record, example, made.generator(index))
            except InvalidRecordError as error:
                reason = reason or str(error)
                continue
            return dataclasses.replace(made, asking=asking)
        raise ValueError(
            f"Task {task.name}: none of the first {tried} records can be used, e.g. {reason}: the "
            "data does not fit the task."
        )

    def generator(self, index: int) -> np.random.Generator:
        """All the randomness of an example."""
        return np.random.default_rng([self.seed, zlib.crc32(self.task.name.encode()), index])

    def row(self, index: int) -> tuple[Batch, EvalExample | None]:
        """The features of an example and its question; an empty row if there is none, or a bad."""
        if index >= self.num_examples:
            return self.asking.empty(), None
        rng = self.generator(index)
        try:
            record, example = make_example(self.task, index, rng)
            return self.asking.row(index, record, example, rng)
        except InvalidRecordError as error:
            return self.asking.empty(), EvalExample(index, self._id(index), error=str(error))

    def _id(self, index: int) -> str:
        """Of a bad record, as far as it can be read."""
        try:
            return _id(self.task.records[index], index)
        except Exception:  # noqa: BLE001  whatever a torn file makes a source raise
            return str(index)

    def batches(self, numbers: Sequence[int]) -> Iterator[Rows]:
        """See `EvalSource`."""
        options = grain.ReadOptions(num_threads=self.num_threads, prefetch_buffer_size=2)
        source = Batches(tuple(numbers), self.asking.rows, self.row)
        dataset = grain.MapDataset.source(source).to_iter_dataset(options)
        if self.num_workers:
            workers = grain.MultiprocessingOptions(self.num_workers, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(workers)
        yield from dataset


@dataclasses.dataclass(frozen=True)
class Batches:
    """Place -> rows; a grain source, picklable if its functions are.

    Attributes:
      numbers: of the batches, by place.
      rows: number of a batch -> the examples in it.
      row: number of an example -> its features and question.
    """

    numbers: tuple[int, ...]
    rows: Callable[[int], Sequence[int]]
    row: Callable[[int], tuple[Batch, EvalExample | None]]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Rows:
        number = self.numbers[place]
        made = [self.row(index) for index in self.rows(number)]
        return number, stack(features for features, _ in made), [q for _, q in made]


# -------------------------------------------------------------------------- examples in an order


@dataclasses.dataclass(frozen=True)
class SeqioEvalSource:
    """Of a task whose examples only come one after the other: seqio's own preprocessors.

    Each host goes through all of them, and keeps its rows.

    Attributes:
      examples: makes an iterator over the examples of the split, the same ones in each call.
      asking: how rows are made; `references` is given the example.
      num_examples: so many are asked; there are at least so many.
    """

    examples: Callable[[], Iterator[Example]]
    asking: EvalBatcher
    num_examples: int

    def batches(self, numbers: Sequence[int]) -> Iterator[Rows]:
        """See `EvalSource`."""
        size = self.asking.stream.batch_size
        rng = np.random.default_rng(0)  # nothing is drawn: all patches are seen
        examples, at = self.examples(), 0
        for number in numbers:
            first = number * size
            chunk = list(itertools.islice(examples, first - at, first - at + size))
            at = first + len(chunk)
            made: list[tuple[Batch, EvalExample | None]] = []
            for index in self.asking.rows(number):
                if index >= min(self.num_examples, at):
                    made.append((self.asking.empty(), None))
                    continue
                example = chunk[index - first]
                try:
                    made.append(self.asking.row(index, example, example, rng))
                except InvalidRecordError as error:
                    question = EvalExample(index, _id(example, index), error=str(error))
                    made.append((self.asking.empty(), question))
            yield number, stack(features for features, _ in made), [q for _, q in made]
