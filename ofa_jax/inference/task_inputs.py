"""The examples of a seqio task as the inputs of a job."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Example
from ofa_jax.data.sampling import WeightedTask, read_example
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.evaluation import fingerprints
from ofa_jax.evaluation.eval_sources import (
    EvalBatcher,
    EvalSource,
    RecordEvalSource,
    SeqioEvalSource,
)
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

_MAX_TRIED = 100


@checked
@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """Selects the examples of a task.

    Attributes:
      task: name in the seqio registry.
      split: the split of the data.
      num_examples: how many examples, from the first; all when None.
    """

    task: options.Name
    split: options.Name = "test"
    num_examples: options.Count | None = None


@dataclasses.dataclass(frozen=True)
class LoadedTask:
    """The examples of a task.

    Attributes:
      name: name in the seqio registry.
      num_examples: how many examples are decoded.
      example: the first valid one, which shows the shapes of all.
      vocab_size: of the task's vocabulary.
      make_source: returns batches of the examples.
      fingerprint: of the files of its records, or of some examples where it has none.
    """

    name: str
    num_examples: int
    example: Example
    vocab_size: int
    make_source: Callable[[EvalBatcher], EvalSource]
    fingerprint: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_task(
    inputs: TaskInputs, source_length: int, num_threads: int, settings: TaskSettings | None = None
) -> LoadedTask:
    """Finds a task and reads its first valid example.

    Args:
      inputs: selects the examples.
      source_length: tokens of an instruction.
      num_threads: threads that prepare examples.
      settings: settings of the task; None for its defaults.

    Raises:
      ValueError: there is no such task, it is a mixture of several, or it has no examples.
    """
    tasks = seqio_bridge.weighted_tasks(inputs.task, inputs.split, settings, training=False)
    if tasks is not None and len(tasks) > 1:
        raise ValueError(
            f"{inputs.task} is a mixture of {', '.join(task.name for task in tasks)}: give one of "
            "them as TaskInputs.task."
        )
    vocab_size = seqio_bridge.vocabulary_of(inputs.task, settings).vocab_size
    if tasks is None:
        return _load_sequential(inputs, source_length, vocab_size)
    (task,) = tasks
    count = _num_examples(inputs, len(task.records))

    def make_source(batcher: EvalBatcher) -> EvalSource:
        return RecordEvalSource.open(task, batcher, count, num_threads=num_threads)

    def read(index: int) -> Iterable[Any]:
        try:
            return [task.records[index]]
        except Exception as error:  # noqa: BLE001  a corrupt file can make a source raise anything
            return [type(error).__name__]

    return LoadedTask(
        inputs.task,
        count,
        _first_example(task, count),
        vocab_size,
        make_source,
        fingerprints.of_records(task.records)
        | {f"examples of {inputs.task}": fingerprints.of_examples(count, read)},
    )


def _load_sequential(inputs: TaskInputs, source_length: int, vocab_size: int) -> LoadedTask:
    """Loads a task with tf.data preprocessors, whose examples are always read in one order."""
    lengths = {"inputs": source_length, "targets": source_length}
    examples = functools.partial(seqio_bridge.examples_in_order, inputs.task, lengths, inputs.split)
    iterator = itertools.islice(examples(), inputs.num_examples)
    first = next(iterator, None)
    if first is None:
        raise _no_examples(inputs)
    found, fingerprint = fingerprints.of_sequence(itertools.chain([first], iterator))
    count = _num_examples(inputs, found)

    def make_source(batcher: EvalBatcher) -> EvalSource:
        return SeqioEvalSource(examples, batcher, count)

    described = {f"examples of {inputs.task}": fingerprint}
    return LoadedTask(inputs.task, count, first, vocab_size, make_source, described)


def _num_examples(inputs: TaskInputs, available: int) -> int:
    """Returns how many of the available examples are decoded."""
    count = available if inputs.num_examples is None else min(available, inputs.num_examples)
    if count < 1:
        raise _no_examples(inputs)
    return count


def _no_examples(inputs: TaskInputs) -> ValueError:
    return ValueError(f"There are no examples in the split {inputs.split} of {inputs.task}.")


def _first_example(task: WeightedTask, count: int) -> Example:
    """Returns the first valid example."""
    reason = ""
    for index in range(min(count, _MAX_TRIED)):
        try:
            return read_example(task, index, np.random.default_rng(0))[1]
        except InvalidRecordError as error:
            reason = reason or str(error)
    raise ValueError(f"Task {task.name}: every record is invalid, e.g. {reason}.")
