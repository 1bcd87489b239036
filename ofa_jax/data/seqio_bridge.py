"""Connects plain numpy preprocessors with seqio's registry.

A preprocessor `(record, rng) -> example` is written once. `numpy_preprocessor` lifts it to a seqio
preprocessor, so that a registered task works with plain seqio and its tools; `weighted_tasks` takes
the same function out again, so that the loader can run it without TensorFlow, in threads or worker
processes. Only this module, `tensors` and the seqio views of vocabulary and features import
TensorFlow.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from ofa_jax.data import features, tensors
from ofa_jax.data.sampling import Preprocess, WeightedTask
from ofa_jax.data.seqio_vocabulary import TaskVocabulary
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.task_settings import TaskContext, default_settings
from ofa_jax.data.tensors import EXAMPLE_SIGNATURE, FIELDS, RECORD_SIGNATURE
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.utils.suggestions import nearest


def output_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """Returns the seqio features of an example; all tasks of a mixture must have the same."""
    text = functools.partial(seqio.Feature, vocabulary=vocabulary, add_eos=False)
    plain = functools.partial(
        seqio.Feature, vocabulary=seqio.PassThroughVocabulary(0), add_eos=False
    )
    return {
        "inputs": text(),
        "targets": text(),
        "image": plain(rank=3, dtype=tf.uint8),
        "blank_box": plain(rank=1, dtype=tf.int32),
        "loss_weight": plain(rank=0, dtype=tf.float32),
        "code_mask": plain(rank=0, dtype=tf.bool),
        "unscored_targets": plain(rank=0, dtype=tf.int32),
        "noisy_targets": plain(rank=1, dtype=tf.int32),
    }


_TRAINING = "_training"
"""A field of the elements of a seqio dataset: whether they are read for training."""


class RecordDataSource(seqio.DataSource):
    """A seqio source over records with random access, opened on first use."""

    def __init__(
        self,
        open_records: Callable[..., RecordSource],
        kind: str,
        splits: Sequence[str] = ("train", "validation", "test"),
        takes_context: bool = False,
    ):
        """Describes a source; nothing is opened yet.

        Args:
          open_records: split -> records; with `takes_context`, (split, TaskContext) -> records.
          kind: which fields the records have, a key of RECORD_FIELDS or DOWNSTREAM_FIELDS.
          splits: the names of the splits.
          takes_context: whether the records depend on the settings of a run.
        """
        super().__init__(splits=splits)
        if kind not in FIELDS:
            raise ValueError(f"No kind of record is called {kind!r}: {', '.join(FIELDS)}.")
        self._open = open_records
        self._takes_context = takes_context
        self.kind = kind

    def records(self, split: str, context: TaskContext | None = None) -> RecordSource:
        """Opens the records of a split.

        Args:
          split: one of the source's.
          context: settings, and whether the records are trained on; by default those of plain
            seqio, see `task_settings`.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"There is no split {split!r}: choose from {', '.join(self.splits)}.")
        if not self._takes_context:
            return self._open(split)
        return self._open(split, context or _context_of(split))

    def num_input_examples(self, split: str) -> int:
        """Returns the number of records of a split."""
        return len(self.records(split))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """True: records are read by number."""
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns a name for the one shard of a split, as seqio asks for."""
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """Returns the records as tensors, and whether they are for training as `_training`."""
        del sequence_length, use_cached, num_epochs
        records = self.records(split)
        training = _context_of(split).training
        names = FIELDS[self.kind]
        dataset = tf.data.Dataset.range(len(records))
        # Sharded first: without a seed every host shuffles differently, and shares would overlap.
        if shard_info and shard_info.num_shards > 1:
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            dataset = dataset.shuffle(len(records), seed=seed, reshuffle_each_iteration=True)

        def read(index: np.ndarray) -> list[np.ndarray]:
            try:
                record = records[int(index)]
            except Exception as error:  # noqa: BLE001  whatever a torn file makes a source raise
                # Without its fields, the first preprocessor will skip it.
                logging.warning("Record %d of %s cannot be read: %s", index, split, error)
                record = {}
            return [tensors.to_tensor(record.get(name), RECORD_SIGNATURE[name]) for name in names]

        def read_tensors(index: tf.Tensor) -> dict[str, tf.Tensor]:
            signature = {name: RECORD_SIGNATURE[name] for name in names}
            fields = tensors.shaped(tensors.numpy_function(read, [index], signature), signature)
            return fields | {_TRAINING: tf.constant(training)}

        return dataset.map(read_tensors)


class numpy_preprocessor:  # noqa: N801  a decorator
    """Lifts `(record, rng) -> example` to a seqio preprocessor.

        @numpy_preprocessor
        def count_objects(record, rng): ...

    Used as a decorator, or called with a function. With `factory=True` the function given takes a
    `TaskContext` and returns the preprocessor; it is called when a dataset is built, so that a task
    can be registered before it is configured. A record that raises InvalidRecordError is skipped
    and logged.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        signature: Mapping[str, tf.TensorSpec] = EXAMPLE_SIGNATURE,
        factory: bool = False,
    ):
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._signature = dict(signature)
        self._factory = factory

    def resolve(self, context: TaskContext) -> Preprocess:
        """Returns the plain function for the settings of a run."""
        return self._function(context) if self._factory else self._function

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Maps the function over a seqio dataset; randomness comes from seqio's seeds."""
        # seqio does not say which split this is: the source has left it in the elements.
        functions = [self.resolve(TaskContext(training=training)) for training in (False, True)]
        signature = {**self._signature, "_good": tf.TensorSpec([], tf.bool)}

        @seqio.map_over_dataset(num_seeds=1)
        def apply(element: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
            training = element.get(_TRAINING, tf.constant(False))
            names = [name for name in element if name != _TRAINING]

            def run(training: bool, seed: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
                function = functions[bool(training)]
                rng = np.random.default_rng(np.asarray(seed).view(np.uint32).tolist())
                record = {
                    name: tensors.from_tensor(value)
                    for name, value in zip(names, values, strict=True)
                }
                try:
                    example = {**tensors.DEFAULTS, **function(record, rng), "_good": np.bool_(True)}
                except InvalidRecordError as error:
                    logging.warning("Skipped a record: %s", error)
                    example = {"_good": np.bool_(False)}
                return [
                    tensors.to_tensor(example.get(name), spec) for name, spec in signature.items()
                ]

            values = [element[name] for name in names]
            outputs = tensors.numpy_function(run, [training, seed, *values], signature)
            return tensors.shaped(outputs, signature) | {_TRAINING: training}

        # A complete example needs the mark no longer; a preprocessor that follows does.
        complete = self._signature.keys() >= {"inputs", "targets"}
        names = [*self._signature, *(() if complete else (_TRAINING,))]
        dataset = apply(dataset).filter(lambda example: example["_good"])
        return dataset.map(lambda example: {name: example[name] for name in names})


def _context_of(split: str) -> TaskContext:
    """Returns the context of plain seqio, where the name of the split decides."""
    return TaskContext(training=split == "train")


# ----------------------------------------------------------------- from the registry to the loader


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The preprocessors of a task, one after the other."""

    functions: tuple[Preprocess, ...]

    def __call__(self, record: Record, rng: np.random.Generator) -> Any:
        """Returns what the last preprocessor makes of a record."""
        for function in self.functions:
            record = function(record, rng)
        return record


def find(name: str) -> seqio.Task | seqio.Mixture:
    """Returns a registered task or mixture.

    Raises:
      ValueError: none has that name; the message gives the nearest.
    """
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in names:
        raise ValueError(
            f"No task or mixture is called {name!r}.{nearest(name, names)} Known are "
            f"{', '.join(sorted(names)) or 'none: set MIXTURE_OR_TASK_MODULE'}."
        )
    return seqio.get_mixture_or_task(name)


def vocabulary_of(name: str, settings: Any = None, feature: str = "targets") -> seqio.Vocabulary:
    """Returns the vocabulary of a task's or mixture's feature under the settings of a run.

    Raises:
      ValueError: there is no task or mixture of that name.
    """
    vocabulary = find(name).output_features[feature].vocabulary
    if isinstance(vocabulary, TaskVocabulary):
        return vocabulary.resolve(settings)
    return vocabulary


def rates(mixture_or_task_name: str, settings: Any = None) -> dict[str, float]:
    """Returns task name -> its rate within a mixture, nested mixtures multiplied out.

    The rate of a task alone is 1; tasks of rate 0 are left out.

    Args:
      mixture_or_task_name: in the seqio registry.
      settings: of the run, which may override rates.

    Raises:
      ValueError: there is none of that name, or a task of it has no inputs or no targets.
    """
    provider = find(mixture_or_task_name)
    for task in provider.tasks if isinstance(provider, seqio.Mixture) else [provider]:
        if missing := sorted({"inputs", "targets"} - set(task.output_features)):
            raise ValueError(
                f"The task {task.name} has no {' and no '.join(missing)} among its output "
                "features: OFA needs an instruction and a target."
            )
    if isinstance(provider, seqio.Task):
        return {provider.name: 1.0}
    with default_settings(settings):  # seqio calls rate functions with the task alone
        named = {task.name: float(provider.get_rate(task)) for task in provider.tasks}
    return {name: rate for name, rate in named.items() if rate}


def weighted_tasks(
    mixture_or_task_name: str, split: str, settings: Any = None, training: bool | None = None
) -> list[WeightedTask] | None:
    """Returns the tasks of a mixture with their plain functions, in the order of their names.

    Args:
      mixture_or_task_name: in the seqio registry.
      split: of the tasks' data.
      settings: of the run, for tasks that need some; None for their defaults.
      training: whether examples are augmented and drawn as in training; None for whether the split
        is called "train", as with plain seqio.

    Returns:
      None if a task is not made of a RecordDataSource and numpy preprocessors: then only seqio can
      give its examples (`sequential_batches`).
    """
    result = []
    context = TaskContext(settings, split == "train" if training is None else training)
    for name, rate in sorted(rates(mixture_or_task_name, settings).items()):
        task = seqio.TaskRegistry.get(name)
        lifted = all(isinstance(step, numpy_preprocessor) for step in task.preprocessors)
        if not isinstance(task.source, RecordDataSource) or not lifted:
            return None
        functions = tuple(step.resolve(context) for step in task.preprocessors)
        records = task.source.records(split, context)
        result.append(WeightedTask(name, rate, records, _Chain(functions)))
    return result


def examples_in_order(
    name: str, lengths: Mapping[str, int], split: str, seed: int = 0
) -> Iterator[features.Example]:
    """Yields the examples of a task with tf.data preprocessors, once, always in the same order.

    Their number is known only by counting: preprocessors may drop examples or make several of one.

    Args:
      name: of a task.
      lengths: feature -> tokens, for preprocessors that ask for them; nothing is cut here.
      split: of its data.
      seed: of random preprocessors.
    """
    return (
        find(name)
        .get_dataset(
            dict(lengths),
            split,
            shuffle=False,
            seed=seed,
            trim_output_features=False,
        )
        .as_numpy_iterator()
    )


def sequential_batches(
    stream: features.Stream,
    task_id: int,
    split: str,
    seed: int,
    num_data_shards: int,
    data_shards: Sequence[int],
    start_step: int,
    settings: Any = None,
) -> Iterator[features.Batch]:
    """Batches of a stream whose tasks are made of ordinary tf.data preprocessors.

    The order is seqio's own and cannot be positioned: a run that starts at `start_step` reads on
    with another seed, so some examples come again and others late. It warns of that.
    """
    logging.warning(
        "%s has tf.data preprocessors: it trains in seqio's own order, which exact resuming does "
        "not cover. Write them as (record, rng) -> example with numpy_preprocessor to have it.",
        stream.mixture_or_task_name,
    )
    with default_settings(settings):
        iterators = [
            find(stream.mixture_or_task_name)
            .get_dataset(
                sequence_length=dict(stream.task_feature_lengths),
                split=split,
                shuffle=True,
                seed=seed + start_step,
                shard_info=seqio.ShardInfo(index=shard, num_shards=num_data_shards),
                num_epochs=None,
                # `to_features` cuts: seqio would cut off the end of the inputs, eos and all.
                trim_output_features=False,
            )
            .as_numpy_iterator()
            for shard in data_shards
        ]
    per_shard = stream.batch_size // num_data_shards
    rng = np.random.default_rng([seed, start_step])
    while True:
        yield features.stack(
            features.to_features(next(iterator), stream, task_id, rng)
            for iterator in iterators
            for _ in range(per_shard)
        )
