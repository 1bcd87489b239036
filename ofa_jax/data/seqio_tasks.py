"""Parts of a seqio task that are written in plain numpy: its source and its preprocessors.

A preprocessor `(record, rng) -> example` is written once. `numpy_preprocessor` lifts it to a seqio
preprocessor, so that the task works with plain seqio and its tools; `seqio_bridge.weighted_tasks`
takes the same function out again for the loader.

Plain seqio does not tell a source or a preprocessor whether it is used for training. A split called
"train" is, unless a `training_mode` block decides otherwise.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from ofa_jax.data import tensors
from ofa_jax.data.sampling import Preprocess
from ofa_jax.data.seqio_evaluation import (
    BOX_TRANSFORM,
    REFERENCES,
    SeqioEvaluation,
    decode_options_of,
)
from ofa_jax.data.seqio_mixing import refuse_converters_of_seqio
from ofa_jax.data.sources.base import RecordSource, is_endless, refuse_endless
from ofa_jax.data.task_registry import check_kind, check_split
from ofa_jax.data.task_settings import TaskContext
from ofa_jax.data.tensors import (
    EVALUATION_SIGNATURE,
    EXAMPLE_SIGNATURE,
    FIELDS,
    RECORD_SIGNATURE,
)
from ofa_jax.utils.bad_input import as_invalid_record

__all__ = ["RecordDataSource", "numpy_preprocessor", "output_features", "training_mode"]

refuse_converters_of_seqio()
_MAX_LOGGED = 20
_SHARD_RECORDS, _MAX_SHARDS = 1024, 1024

_training_mode: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
    "training_mode", default=None
)


@contextlib.contextmanager
def training_mode(training: bool | None) -> Iterator[None]:
    """Decides within a block whether datasets of plain seqio are built for training.

    Args:
      training: None for the default, whether the split is called "train".
    """
    token = _training_mode.set(training)
    try:
        yield
    finally:
        _training_mode.reset(token)


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
        "loss_weight": plain(rank=1, dtype=tf.float32),
        "code_mask": plain(rank=1, dtype=tf.bool),
        "unscored_targets": plain(rank=1, dtype=tf.int32),
        "noisy_targets": plain(rank=1, dtype=tf.int32),
    }


_TRAINING, _REFERENCES = "_training", "_references"
"""Fields of the elements of a seqio dataset: whether they are read for training (1 or 0, as seqio
cannot cache a bool), and the references of the record, which a preprocessor does not see."""


class RecordDataSource(seqio.DataSource):
    """A seqio source over records with random access, opened on first use."""

    def __init__(
        self,
        open_records: Callable[..., RecordSource],
        kind: str,
        splits: Sequence[str] = ("train", "validation", "test"),
        takes_context: bool = False,
        evaluation: SeqioEvaluation | None = None,
        available_splits: Callable[[], Sequence[str] | None] | None = None,
    ):
        """Describes a source; nothing is opened yet.

        Args:
          open_records: split -> records; with `takes_context`, (split, TaskContext) -> records.
          kind: which fields the records have, a key of RECORD_FIELDS or DOWNSTREAM_FIELDS.
          splits: the names of the splits.
          takes_context: whether the records depend on the settings of a run.
          evaluation: reads the references of records that are not for training.
          available_splits: returns those of `splits` that have data, if that is known.
        """
        super().__init__(splits=splits)
        check_kind(kind)
        self._open = open_records
        self._takes_context = takes_context
        self._evaluation = evaluation
        self._available_splits = available_splits
        self.kind = kind

    @property
    def splits(self) -> Sequence[str]:
        """The splits that have data; all that the source may have where that is not known."""
        available = None if self._available_splits is None else self._available_splits()
        return [split for split in self._splits if available is None or split in available]

    def records(self, split: str, context: TaskContext | None = None) -> RecordSource:
        """Opens the records of a split.

        Args:
          split: one of the source's.
          context: settings, and whether the records are trained on; by default those of plain
            seqio, see `task_settings`.

        Raises:
          ValueError: there is no such split.
        """
        check_split(split, self._splits)
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
        """Returns names of equal shards of a split, which `seqio_cache_tasks` reads in parallel."""
        records = self.records(split)
        refuse_endless(records, "cached")
        count = min(-(-len(records) // _SHARD_RECORDS), _MAX_SHARDS)
        if count <= 1:
            return [split]
        return [f"{split}-{index:05d}-of-{count:05d}" for index in range(count)]

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
        """Returns the records as tensors, and whether they are for training as `_training`.

        With an evaluation they also have `_references`, which are empty in training.
        """
        del sequence_length, use_cached, num_epochs
        records = self.records(split)
        context = _context_of(split)
        signature = {name: RECORD_SIGNATURE[name] for name in FIELDS[self.kind]}
        read_references = None
        if self._evaluation is not None:
            signature[_REFERENCES] = EVALUATION_SIGNATURE[REFERENCES]
            if not context.training:
                read_references = self._evaluation.references(context)
        dataset = tf.data.Dataset.range(len(records))
        # Sharded first: without a seed every host shuffles differently, and shares would overlap.
        if shard_info and shard_info.num_shards > 1:
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        if shuffle and not is_endless(records):
            dataset = dataset.shuffle(len(records), seed=seed, reshuffle_each_iteration=True)

        def read(index: np.ndarray) -> list[np.ndarray]:
            def convert(record: Mapping[str, Any]) -> list[np.ndarray]:
                if read_references is not None and record:
                    record = {**record, _REFERENCES: read_references(record)}
                return tensors.to_tensors(record, signature)

            try:
                return convert(records[int(index)])
            except Exception as error:  # noqa: BLE001  whatever a torn file makes a source raise
                # Without its fields, the first preprocessor will skip it.
                logging.log_first_n(
                    logging.WARNING,
                    "Record %d of %s cannot be read: %s",
                    _MAX_LOGGED,
                    index,
                    split,
                    error,
                )
                return convert({})

        def read_tensors(index: tf.Tensor) -> dict[str, tf.Tensor]:
            fields = tensors.shaped(tensors.numpy_function(read, [index], signature), signature)
            return fields | {_TRAINING: tf.constant(int(context.training))}

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
        evaluation: SeqioEvaluation | None = None,
    ):
        """Lifts a function.

        Args:
          function: `(record, rng) -> example`; with `factory`, `TaskContext` -> that function.
          signature: of what it returns.
          factory: see the class.
          evaluation: of the task, whose last preprocessor this is.
        """
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._signature = dict(signature)
        self._factory = factory
        self._evaluation = evaluation

    def resolve(self, context: TaskContext) -> Preprocess:
        """Returns the plain function for the settings of a run."""
        return self._function(context) if self._factory else self._function

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Maps the function over a seqio dataset; randomness comes from seqio's seeds."""
        # seqio does not say which split this is: the source has left it in the elements.
        functions = [self.resolve(TaskContext(training=training)) for training in (False, True)]
        # A complete example needs the marks no longer; a preprocessor that follows does.
        complete = self._signature.keys() >= {"inputs", "targets"}
        evaluated = complete and self._evaluation is not None
        passed = [name for name in (_TRAINING, _REFERENCES) if name in dataset.element_spec]
        own = {**self._signature, **(EVALUATION_SIGNATURE if evaluated else {})}
        signature = {**own, "_good": tf.TensorSpec([], tf.bool)}

        def run(
            names: Sequence[str], references: bytes, training: int, seed: np.ndarray, values: Any
        ) -> list[np.ndarray]:
            function = functions[bool(training)]
            rng = np.random.default_rng(np.asarray(seed).view(np.uint32).tolist())
            record = tensors.from_tensors(names, values)
            try:
                example = {**tensors.DEFAULTS, **function(record, rng), "_good": np.bool_(True)}
                if evaluated:
                    example[REFERENCES] = references
                    example[BOX_TRANSFORM] = self._box_transform(record, example, function)
                return tensors.to_tensors(example, signature)
            except Exception as error:  # noqa: BLE001  a record of odd types may raise any
                _log_skipped(error)
                return tensors.to_tensors({"_good": np.bool_(False)}, signature)

        @seqio.map_over_dataset(num_seeds=1)
        def apply(element: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
            training = element.get(_TRAINING, tf.constant(0))
            references = element.get(_REFERENCES, tf.constant(b""))
            names = [name for name in element if name not in (_TRAINING, _REFERENCES)]
            outputs = tensors.numpy_function(
                lambda references, training, seed, *values: run(
                    names, references, training, seed, values
                ),
                [references, training, seed, *(element[name] for name in names)],
                signature,
            )
            shaped = tensors.shaped(outputs, signature)
            return shaped | {name: element[name] for name in passed}

        names = [*own, *(() if complete else passed)]
        dataset = apply(dataset).filter(lambda example: example["_good"])
        return dataset.map(lambda example: {name: example[name] for name in names})

    def _box_transform(
        self, record: Mapping[str, Any], example: Mapping[str, Any], function: Preprocess
    ) -> np.ndarray:
        """Returns the transform of an example's boxes, see `seqio_evaluation`."""
        assert self._evaluation is not None
        return self._evaluation.box_transform(record, dict(example), decode_options_of(function))


def _log_skipped(error: Exception) -> None:
    """Logs why a record is skipped, up to a number of records."""
    invalid = as_invalid_record(error, "cannot be preprocessed")
    logging.log_first_n(
        logging.WARNING,
        "Skipped a record: %s (%s)",
        _MAX_LOGGED,
        invalid,
        invalid.reason.name,
    )


def _context_of(split: str) -> TaskContext:
    """Returns the context of plain seqio: default settings, and `training_mode` or the split."""
    training = _training_mode.get()
    return TaskContext(training=split == "train" if training is None else training)
