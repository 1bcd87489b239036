"""The examples of a seqio task as inputs of a job."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Example
from ofa_jax.data.sampling import WeightedTask, make_example
from ofa_jax.evaluation.eval_sources import (
    EvalBatcher,
    EvalSource,
    RecordEvalSource,
    SeqioEvalSource,
)
from ofa_jax.preprocessing.records import InvalidRecordError, Record

_MOST_TRIED = 100


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """What a task asks.

    Attributes:
      task: in the seqio registry.
      split: of its data.
      num_examples: the first ones; all when None.
    """

    task: str
    split: str = "test"
    num_examples: int | None = None


@dataclasses.dataclass(frozen=True)
class OpenTask:
    """The examples of a task.

    Attributes:
      num_examples: so many are asked.
      example: the first good one, which shows what the others look like.
      vocab_size: of the task's vocabulary.
      questions: makes batches of them.
    """

    num_examples: int
    example: Example
    vocab_size: int
    questions: Callable[[EvalBatcher], EvalSource]


def open_task(
    inputs: TaskInputs, source_length: int, num_threads: int, settings: Any = None
) -> OpenTask:
    """Finds a task and looks at its first example.

    Args:
      inputs: names it.
      source_length: tokens of an instruction.
      num_threads: that make examples.
      settings: of the task; None for its defaults.

    Raises:
      ValueError: there is none; it is a mixture of several; it has nothing to ask.
    """
    tasks = seqio_bridge.weighted_tasks(inputs.task, inputs.split, settings, training=False)
    if tasks is not None and len(tasks) > 1:
        raise ValueError(
            f"{inputs.task} is a mixture of {', '.join(task.name for task in tasks)}: ask one of "
            "them at a time."
        )
    vocab_size = seqio_bridge.vocabulary_of(inputs.task, settings).vocab_size
    if tasks is None:
        return _sequential(inputs, source_length, vocab_size)
    (task,) = tasks
    count = _at_most(inputs, len(task.records))
    make = lambda asking: RecordEvalSource.open(  # noqa: E731
        task, asking, count, num_threads=num_threads
    )
    return OpenTask(count, _first(task, count), vocab_size, make)


def _sequential(inputs: TaskInputs, source_length: int, vocab_size: int) -> OpenTask:
    """Of a task that only seqio can read: one example after the other, always in one order."""
    lengths = {"inputs": source_length, "targets": source_length}
    examples = functools.partial(seqio_bridge.examples_in_order, inputs.task, lengths, inputs.split)
    asked = itertools.islice(examples(), inputs.num_examples)
    first = next(asked, None)
    found = (first is not None) + sum(1 for _ in asked)
    count = _at_most(inputs, found)
    make = functools.partial(SeqioEvalSource, examples, num_examples=count)
    return OpenTask(count, first, vocab_size, make)


def _at_most(inputs: TaskInputs, count: int) -> int:
    count = count if inputs.num_examples is None else min(count, inputs.num_examples)
    if count < 1:
        raise ValueError(f"There is nothing to ask in the split {inputs.split} of {inputs.task}.")
    return count


def _first(task: WeightedTask, count: int) -> Example:
    reason = ""
    for index in range(min(count, _MOST_TRIED)):
        try:
            return make_example(task, index, np.random.default_rng(0))[1]
        except InvalidRecordError as error:
            reason = reason or str(error)
    raise ValueError(f"Task {task.name}: every record is bad, e.g. {reason}.")


def no_references(record: Record) -> None:
    """Nothing is compared."""
    del record
