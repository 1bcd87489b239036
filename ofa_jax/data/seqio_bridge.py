"""The door between plain numpy functions and seqio.

A preprocessor `(record, rng) -> example` is written once. `numpy_preprocessor` lifts it to a seqio
preprocessor, so that a registered task works with plain seqio and its tools; `weighted_tasks` takes
the same function out again, so that the loader can run it without TensorFlow, in threads or worker
processes. This is the only module of `ofa_jax.data` that imports TensorFlow.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from ofa_jax.data import features
from ofa_jax.data.sampling import Preprocess, WeightedTask
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.records import (
    DOWNSTREAM_FIELDS,
    RECORD_FIELDS,
    InvalidRecordError,
    Record,
)
from ofa_jax.utils.suggestions import nearest

_STRING, _STRINGS = tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.string)
_BOXES = tf.TensorSpec([None, 4], tf.float32)
_NUMBERS = tf.TensorSpec([None], tf.float32)
_FIELDS = {**RECORD_FIELDS, **DOWNSTREAM_FIELDS}
RECORD_SIGNATURE: Mapping[str, tf.TensorSpec] = {
    "id": _STRING,
    "split": _STRING,
    "image": _STRING,
    "captions": _STRINGS,
    "negative_captions": _STRINGS,
    "questions": _STRINGS,
    "answers": _STRINGS,
    "answer_confidences": _NUMBERS,
    "answer_types": _STRINGS,
    "phrases": _STRINGS,
    "phrase_boxes": _BOXES,
    "true_phrases": _STRINGS,
    "true_phrase_boxes": _BOXES,
    "object_labels": _STRINGS,
    "object_boxes": _BOXES,
    "codes": tf.TensorSpec([None], tf.int32),
    "text": _STRING,
    "data_set": _STRING,
    "summary": _STRING,
    "label": _STRING,
    "sentence": _STRING,
    "sentence1": _STRING,
    "sentence2": _STRING,
    "question": _STRING,
    "question1": _STRING,
    "question2": _STRING,
    "premise": _STRING,
    "hypothesis": _STRING,
    "reference_answers": _STRINGS,
    "reference_confidences": _NUMBERS,
}
"""How the fields of a record look as tensors; what a record lacks is empty."""

EXAMPLE_SIGNATURE: Mapping[str, tf.TensorSpec] = {
    "inputs": tf.TensorSpec([None], tf.int32),
    "targets": tf.TensorSpec([None], tf.int32),
    "image": tf.TensorSpec([None, None, 3], tf.uint8),
    "blank_box": tf.TensorSpec([4], tf.int32),
    "loss_weight": tf.TensorSpec([], tf.float32),
    "code_mask": tf.TensorSpec([], tf.bool),
    "unscored_targets": tf.TensorSpec([], tf.int32),
    "noisy_targets": tf.TensorSpec([None], tf.int32),
}
"""How an example looks as tensors (see `features`): seqio mixes only tasks that look alike, so an
example without an image has one of 0x0 pixels."""

_DEFAULTS = {
    "image": np.zeros((0, 0, 3), np.uint8),
    "blank_box": np.zeros(4, np.int32),
    "loss_weight": np.float32(1.0),
    "code_mask": np.bool_(False),
    "unscored_targets": np.int32(0),
    "noisy_targets": np.zeros(0, np.int32),
}


def output_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """The seqio features of an example. Every task that is mixed with ours has just these."""
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


class RecordDataSource(seqio.DataSource):
    """A seqio source over records with random access, opened when it is first asked."""

    def __init__(
        self,
        open_records: Callable[[str], RecordSource],
        kind: str,
        splits: Sequence[str] = ("train", "validation", "test"),
    ):
        """Names a source.

        Args:
          open_records: split -> records.
          kind: which fields the records have, a key of RECORD_FIELDS or DOWNSTREAM_FIELDS.
          splits: what may be asked for.
        """
        super().__init__(splits=splits)
        if kind not in _FIELDS:
            raise ValueError(f"No kind of record is called {kind!r}: {', '.join(_FIELDS)}.")
        self._open = open_records
        self.kind = kind

    def records(self, split: str) -> RecordSource:
        """The records of a split, for the loader."""
        if split not in self.splits:
            raise ValueError(f"There is no split {split!r}: choose from {', '.join(self.splits)}.")
        return self._open(split)

    def num_input_examples(self, split: str) -> int:
        return len(self.records(split))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
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
        """The records as tensors, with their split in the field `split`."""
        del sequence_length, use_cached, num_epochs
        records = self.records(split)
        names = [*_FIELDS[self.kind], "split"]
        dataset = tf.data.Dataset.range(len(records))
        # Sharded first: without a seed every host shuffles differently, and shares would overlap.
        if shard_info and shard_info.num_shards > 1:
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            dataset = dataset.shuffle(len(records), seed=seed, reshuffle_each_iteration=True)

        def read(index: np.ndarray) -> list[np.ndarray]:
            try:
                record = {**records[int(index)], "split": split}
            except Exception as error:  # noqa: BLE001  whatever a torn file makes a source raise
                # Without its fields, the first preprocessor will skip it.
                logging.warning("Record %d of %s cannot be read: %s", index, split, error)
                record = {"split": split}
            return [_to_tensor(record.get(name), RECORD_SIGNATURE[name]) for name in names]

        def read_tensors(index: tf.Tensor) -> dict[str, tf.Tensor]:
            signature = {name: RECORD_SIGNATURE[name] for name in names}
            return _shaped(_numpy_function(read, [index], signature), signature)

        return dataset.map(read_tensors)


class numpy_preprocessor:  # noqa: N801  a decorator
    """Lifts `(record, rng) -> example` to a seqio preprocessor.

        @numpy_preprocessor
        def count_objects(record, rng): ...

    Used as a decorator, or called with a function. With `factory=True` the function given is called
    without arguments when a dataset is built and returns the preprocessor: so a task can be
    registered before it is configured. A InvalidRecordError is skipped and logged.
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

    def resolve(self) -> Preprocess:
        """The plain function."""
        return self._function() if self._factory else self._function

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Maps the function over a seqio dataset; randomness comes from seqio's seeds."""
        function = self.resolve()
        signature = {**self._signature, "_good": tf.TensorSpec([], tf.bool)}

        @seqio.map_over_dataset(num_seeds=1)
        def apply(tensors: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
            names = list(tensors)

            def run(seed: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
                rng = np.random.default_rng(np.asarray(seed).view(np.uint32).tolist())
                record = {
                    name: _from_tensor(value) for name, value in zip(names, values, strict=True)
                }
                try:
                    example = {**_DEFAULTS, **function(record, rng), "_good": np.bool_(True)}
                except InvalidRecordError as error:
                    logging.warning("Skipped a record: %s", error)
                    example = {"_good": np.bool_(False)}
                return [_to_tensor(example.get(name), spec) for name, spec in signature.items()]

            outputs = _numpy_function(run, [seed, *tensors.values()], signature)
            return _shaped(outputs, signature)

        dataset = apply(dataset).filter(lambda example: example["_good"])
        return dataset.map(lambda example: {name: example[name] for name in self._signature})


def _numpy_function(
    function: Callable[..., list[np.ndarray]],
    inputs: list[tf.Tensor],
    signature: Mapping[str, tf.TensorSpec],
) -> dict[str, tf.Tensor]:
    outputs = tf.numpy_function(function, inputs, [spec.dtype for spec in signature.values()])
    return dict(zip(signature, outputs, strict=True))


def _shaped(
    tensors: dict[str, tf.Tensor], signature: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.Tensor]:
    return {name: tf.ensure_shape(tensors[name], spec.shape) for name, spec in signature.items()}


def _to_tensor(value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """A field as numpy_function returns it; None is empty."""
    shape = [0 if size is None else size for size in spec.shape]
    if spec.dtype == tf.string:
        if value is None:
            value = b"" if not shape else []
        encode = lambda text: text.encode("utf-8") if isinstance(text, str) else text  # noqa: E731
        encoded = encode(value) if not shape else [encode(text) for text in value]
        return np.array(encoded, object)
    if value is None:
        return np.zeros(shape, spec.dtype.as_numpy_dtype)
    return np.asarray(value, spec.dtype.as_numpy_dtype)


def _from_tensor(value: Any) -> Any:
    """A tensor's value as a record holds it: str for text, bytes for what is no text."""
    if isinstance(value, bytes):
        return _text(value)
    if value.dtype == object:
        texts = [_text(text) for text in value.reshape(-1)]
        return texts if value.ndim else texts[0]
    return value


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


# ----------------------------------------------------------------- from the registry to the loader


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The preprocessors of a task, one after the other."""

    functions: tuple[Preprocess, ...]
    split: str

    def __call__(self, record: Record, rng: np.random.Generator) -> Any:
        record = {**record, "split": self.split}
        for function in self.functions:
            record = function(record, rng)
        return record


def find(name: str) -> seqio.Task | seqio.Mixture:
    """A registered task or mixture.

    Raises:
      ValueError: there is none of that name; names the nearest.
    """
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in names:
        raise ValueError(
            f"No task or mixture is called {name!r}.{nearest(name, names)} Known are "
            f"{', '.join(sorted(names)) or 'none: set MIXTURE_OR_TASK_MODULE'}."
        )
    return seqio.get_mixture_or_task(name)


def rates(mixture_or_task_name: str) -> dict[str, float]:
    """Task name -> its rate within a mixture (nested ones multiplied out); 1 for a task alone.

    Tasks of rate 0 are left out.

    Raises:
      ValueError: there is none of that name, or a task of it has no inputs or no targets.
    """
    provider = find(mixture_or_task_name)
    for task in provider.tasks if isinstance(provider, seqio.Mixture) else [provider]:
        if missing := sorted({"inputs", "targets"} - set(task.output_features)):
            raise ValueError(
                f"The task {task.name} has no {' and no '.join(missing)} among its output "
                "features: OFA needs an instruction and an answer."
            )
    if isinstance(provider, seqio.Task):
        return {provider.name: 1.0}
    named = {task.name: float(provider.get_rate(task)) for task in provider.tasks}
    return {name: rate for name, rate in named.items() if rate}


def weighted_tasks(mixture_or_task_name: str, split: str) -> list[WeightedTask] | None:
    """The tasks of a mixture with their plain functions, in the order of their names.

    Returns:
      None if a task is not made of a RecordDataSource and numpy preprocessors: then only seqio can
      give its examples (`sequential_batches`).
    """
    result = []
    for name, rate in sorted(rates(mixture_or_task_name).items()):
        task = seqio.TaskRegistry.get(name)
        lifted = all(isinstance(step, numpy_preprocessor) for step in task.preprocessors)
        if not isinstance(task.source, RecordDataSource) or not lifted:
            return None
        functions = tuple(step.resolve() for step in task.preprocessors)
        records = task.source.records(split)
        result.append(WeightedTask(name, rate, records, _Chain(functions, split)))
    return result


def examples_in_order(
    name: str, lengths: Mapping[str, int], split: str, seed: int = 0
) -> Iterator[features.Example]:
    """The examples of a task of ordinary tf.data preprocessors, once, always in the same order.

    How many there are is known only by counting: preprocessors leave examples out, or make several
    of one.

    Args:
      name: of a task.
      lengths: feature -> tokens, for preprocessors that ask for them; nothing is cut here.
      split: of its data.
      seed: of preprocessors that draw.
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
