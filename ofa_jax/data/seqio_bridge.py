"""From registered tasks to the loader: looks up tasks and mixtures, and makes their batches.

`weighted_tasks` takes the plain functions out of tasks, so that the loader runs them without
TensorFlow, in threads or worker processes. `sequential_batches` reads all other tasks through
seqio. While nothing has imported seqio, all tasks are in `task_registry`, and nothing here imports
it either; else they are in the registry of seqio.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from ofa_jax.data import features, task_registry
from ofa_jax.data.sampling import Preprocess, WeightedTask
from ofa_jax.data.sources.base import RecordSource, of_task
from ofa_jax.data.task_settings import TaskContext, default_settings
from ofa_jax.preprocessing.records import Record
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.bad_input import Treatment, declare, note, without_addresses
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions

if TYPE_CHECKING:
    import seqio

    from ofa_jax.data.seqio_tasks import RecordDataSource as RecordDataSource
    from ofa_jax.data.seqio_tasks import numpy_preprocessor as numpy_preprocessor
    from ofa_jax.data.seqio_tasks import output_features as output_features
    from ofa_jax.data.tensors import EXAMPLE_SIGNATURE as EXAMPLE_SIGNATURE

__all__ = [
    "EXAMPLE_SIGNATURE",
    "RecordDataSource",
    "examples_in_order",
    "find",
    "metric_task",
    "numpy_preprocessor",
    "output_features",
    "rates",
    "sequential_batches",
    "vocabulary_of",
    "weighted_tasks",
]

# What users of seqio find here as well, and its module, which imports seqio.
_OF_SEQIO = {
    "EXAMPLE_SIGNATURE": "ofa_jax.data.tensors",
    "RecordDataSource": "ofa_jax.data.seqio_tasks",
    "numpy_preprocessor": "ofa_jax.data.seqio_tasks",
    "output_features": "ofa_jax.data.seqio_tasks",
}


def __getattr__(name: str) -> Any:
    """Returns one of the names of `_OF_SEQIO`."""
    if name not in _OF_SEQIO:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OF_SEQIO[name]), name)


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


def find(name: str) -> "seqio.Task | seqio.Mixture":
    """Returns a registered task or mixture, as seqio has it.

    Raises:
      ValueError: none has that name; the message gives the nearest.
    """
    import seqio

    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in names:
        raise ValueError(task_registry.unknown_name(name, sorted(names)))
    return seqio.get_mixture_or_task(name)


def metric_task(name: str) -> "seqio.Task | None":
    """Returns a task that has metrics of seqio; None of one that has none.

    Raises:
      ValueError: there is no task of that name.
    """
    if not task_registry.seqio_is_imported():
        for task in task_registry.find(name).tasks:
            if task.name == name and task.evaluation is None:
                return None
    task = find(name)
    return task if getattr(task, "predict_metric_fns", None) else None


def vocabulary_of(name: str, settings: Any = None) -> "OFAVocabulary | seqio.Vocabulary":
    """Returns the vocabulary of a task's or mixture's targets under the settings of a run.

    Returns:
      The OFAVocabulary, or that of seqio for a task that has another one.

    Raises:
      ValueError: there is no task or mixture of that name.
    """
    if not task_registry.seqio_is_imported():
        return task_registry.find(name).tasks[0].source.of(settings).vocabulary
    from ofa_jax.data.seqio_vocabulary import TaskVocabulary

    vocabulary = find(name).output_features["targets"].vocabulary
    if isinstance(vocabulary, TaskVocabulary):
        vocabulary = vocabulary.resolve(settings)
    wrapped = getattr(vocabulary, "wrapped", None)
    return wrapped if isinstance(wrapped, OFAVocabulary) else vocabulary


def rates(mixture_or_task_name: str, settings: Any = None) -> dict[str, float]:
    """Returns task name -> its rate within a mixture, nested mixtures multiplied out.

    The rate of a task alone is 1; tasks of rate 0 are left out.

    Args:
      mixture_or_task_name: as it is registered.
      settings: of the run, which may override rates.

    Raises:
      ValueError: there is none of that name, or a task of it has no inputs or no targets.
    """
    if task_registry.seqio_is_imported():
        named = _rates_of_seqio(mixture_or_task_name, settings)
    else:
        named = task_registry.rates(mixture_or_task_name, settings)
    return {name: rate for name, rate in named.items() if rate}


def _rates_of_seqio(mixture_or_task_name: str, settings: Any) -> dict[str, float]:
    import seqio

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
        return {task.name: float(provider.get_rate(task)) for task in provider.tasks}


def weighted_tasks(
    mixture_or_task_name: str, split: str, settings: Any = None, training: bool | None = None
) -> list[WeightedTask] | None:
    """Returns the tasks of a mixture with their plain functions, in the order of their names.

    Args:
      mixture_or_task_name: as it is registered.
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
        found = _functions_and_records(name, split, context)
        if found is None:
            return None
        functions, records = found
        result.append(WeightedTask(name, rate, of_task(records, name), _Chain(functions)))
    return result


def _functions_and_records(
    name: str, split: str, context: TaskContext
) -> tuple[tuple[Preprocess, ...], RecordSource] | None:
    """Returns the functions and the records of a task; None if it is not made of them."""
    if not task_registry.seqio_is_imported():
        (task,) = task_registry.find(name).tasks
        return (task.preprocessor(context),), task.records(split, context)
    import seqio

    from ofa_jax.data.seqio_tasks import RecordDataSource, numpy_preprocessor

    known = seqio.TaskRegistry.get(name)
    steps = [s for s in known.preprocessors if not isinstance(s, seqio.CacheDatasetPlaceholder)]
    lifted = all(isinstance(step, numpy_preprocessor) for step in steps)
    if not isinstance(known.source, RecordDataSource) or not lifted:
        return None
    return tuple(step.resolve(context) for step in steps), known.source.records(split, context)


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
    import tensorflow as tf

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
    import seqio

    from ofa_jax.data.seqio_tasks import training_mode

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
