"""From the seqio registry to the loader: looks up tasks and mixtures, and makes their batches.

`weighted_tasks` takes the plain functions out of tasks that are made of `seqio_tasks`, so that the
loader runs them without TensorFlow, in threads or worker processes. `sequential_batches` reads all
other tasks through seqio.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from ofa_jax.data import features
from ofa_jax.data.sampling import Preprocess, WeightedTask
from ofa_jax.data.seqio_tasks import (
    RecordDataSource,
    numpy_preprocessor,
    output_features,
    training_mode,
)
from ofa_jax.data.seqio_vocabulary import TaskVocabulary
from ofa_jax.data.sources.base import of_task
from ofa_jax.data.task_settings import TaskContext, default_settings
from ofa_jax.data.tensors import EXAMPLE_SIGNATURE
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import Treatment, declare, note, without_addresses
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.suggestions import nearest

__all__ = [
    "EXAMPLE_SIGNATURE",
    "RecordDataSource",
    "examples_in_order",
    "find",
    "numpy_preprocessor",
    "output_features",
    "rates",
    "sequential_batches",
    "vocabulary_of",
    "weighted_tasks",
]


DAMAGED_EXAMPLE = declare(
    "damaged example of tf.data",
    Treatment.SKIPPED,
    "A seqio task that is read through tf.data raised an error for an example, such as a damaged "
    "TFRecord file. After 10,000 errors in a row, the run ends with a sentence.",
    __name__,
)
# tf.data's buffer for shuffling meets many errors before it gives the first example.
_MAX_DAMAGED = 10_000


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The preprocessors of a task, one after the other."""

    functions: tuple[Preprocess, ...]

    def __call__(self, record: Record, rng: np.random.Generator) -> Any:
        """Returns what the last preprocessor makes of a record."""
        for function in self.functions:
            record = function(record, rng)
        return record

    @property
    def decode_options(self) -> DecodeOptions:
        """How images are decoded: as the first preprocessor that has options, or as people do."""
        configs = (getattr(function, "config", None) for function in self.functions)
        found = (getattr(config, "decode_options", None) for config in configs)
        return next((options for options in found if options is not None), AS_SEEN)


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
        steps = [
            step
            for step in task.preprocessors
            if not isinstance(step, seqio.CacheDatasetPlaceholder)
        ]
        lifted = all(isinstance(step, numpy_preprocessor) for step in steps)
        if not isinstance(task.source, RecordDataSource) or not lifted:
            return None
        functions = tuple(step.resolve(context) for step in steps)
        records = of_task(task.source.records(split, context), name)
        result.append(WeightedTask(name, rate, records, _Chain(functions)))
    return result


def examples_in_order(
    name: str, lengths: Mapping[str, int] | None, split: str, seed: int = 0
) -> Iterator[features.Example]:
    """Yields the examples of a task with tf.data preprocessors, once, always in the same order.

    Their number is known only by counting: preprocessors may drop examples or make several of one.

    Args:
      name: of a task.
      lengths: feature -> tokens, for preprocessors that ask for them, if known; nothing is cut
        here.
      split: of its data.
      seed: of random preprocessors.
    """
    known = None if lengths is None else dict(lengths)
    dataset = find(name).get_dataset(
        known, split, shuffle=False, seed=seed, trim_output_features=False
    )
    return _without_damaged(dataset.as_numpy_iterator(), name)


def _without_damaged(examples: Iterator[Any], name: str) -> Iterator[Any]:
    """Yields the examples of a tf.data pipeline; those that raise are skipped and noted.

    After the damaged part of a TFRecord file, tf.data goes on with the next file.

    Raises:
      ValueError: so many in a row raise that the fault is not theirs.
    """
    failed = 0
    while True:
        try:
            example = next(examples)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            failed += 1
            problem = " ".join(without_addresses(error.message or str(error)).split())[:200]
            if failed == _MAX_DAMAGED:
                raise ValueError(
                    f"{name} gave {failed} errors in a row, e.g. {type(error).__name__} "
                    f"({problem}): check its files and its preprocessors."
                ) from error
            note(DAMAGED_EXAMPLE, f"{name}: an example was skipped ({problem})")
        else:
            failed = 0
            yield example


def sequential_batches(
    stream: features.Stream,
    task_id: int,
    split: str,
    seed: int,
    num_data_shards: int,
    data_shards: Sequence[int],
    start_step: int,
    settings: Any = None,
    training: bool | None = None,
) -> Iterator[features.Batch]:
    """Yields the batches of a stream whose tasks have ordinary tf.data preprocessors.

    The order is seqio's own and has no random access: a run that starts at `start_step` uses
    another seed, so some examples recur early and others late. A warning is logged.

    Args:
      stream: its mixture or task is read through seqio.
      task_id: value of `task_ids`.
      split: of the data.
      seed: of the run.
      num_data_shards: size of the mesh's data axes.
      data_shards: positions on them whose rows this host makes.
      start_step: the first step.
      settings: of the run, for tasks that need some; None for their defaults.
      training: whether tasks made of `seqio_tasks` augment; None for whether the split is called
        "train".
    """
    logging.warning(
        "%s has tf.data preprocessors: it trains in seqio's own order, which exact resuming does "
        "not cover. Write them as (record, rng) -> example with numpy_preprocessor to have it.",
        stream.mixture_or_task_name,
    )
    with default_settings(settings), training_mode(training):
        name = stream.mixture_or_task_name
        datasets = [
            find(stream.mixture_or_task_name).get_dataset(
                sequence_length=dict(stream.task_feature_lengths),
                split=split,
                shuffle=True,
                seed=seed + start_step,
                shard_info=seqio.ShardInfo(index=shard, num_shards=num_data_shards),
                num_epochs=None,
                # `to_features` truncates: seqio would cut off the eos of long inputs.
                trim_output_features=False,
            )
            for shard in data_shards
        ]
        iterators = [_without_damaged(data.as_numpy_iterator(), name) for data in datasets]
    per_shard = stream.batch_size // num_data_shards
    rng = np.random.default_rng([seed, start_step])
    while True:
        try:
            examples = [next(iterator) for iterator in iterators for _ in range(per_shard)]
        except StopIteration:
            raise ValueError(
                f"{name} yields nothing on the split {split!r}: check its data and preprocessors."
            ) from None
        yield features.stack(
            features.to_features(example, stream, task_id, rng) for example in examples
        )
